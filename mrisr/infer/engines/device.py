"""Where a network runs, as a text that PyTorch reads: naming a device loads no PyTorch."""

from __future__ import annotations


class Device(str):
    """ "cpu" or "cuda:N": what `torch.device` of the same text is, and taken by PyTorch wherever that is."""

    __slots__ = ()

    @property
    def type(self) -> str:
        return self.partition(":")[0]


CPU = Device("cpu")
