"""The native core as the backends call it: C++ by CPU threads or CUDA on a stream, with one list of arguments.

Every function of csrc/python/bindings.h is bound twice where both exist, with the same arguments but for the last: a
number of threads, or a stream. A family whose functions are in both writes one class and makes two backends of it.
"""

from __future__ import annotations

import torch

from mrisr import native
from mrisr.errors import BackendError


def _plain(argument):
    """A tensor as its address, None as 0, of lists each entry."""
    if argument is None:
        return 0
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    if isinstance(argument, list) and argument and (argument[0] is None or isinstance(argument[0], torch.Tensor)):
        return [_plain(part) for part in argument]
    return argument


def _function(name: str):
    function = getattr(native.module(), name, None)
    if function is None:
        raise BackendError(
            f"the native core has no {name}: it was built of other sources; build it with: pip install -e ."
        )
    return function


class Cpu:
    """Calls C++. It uses as many threads as PyTorch does, so that torch.set_num_threads rules both."""

    reason = staticmethod(native.reason)

    def __call__(self, name: str, device: torch.device, *arguments) -> None:
        _function(name)(*map(_plain, arguments), torch.get_num_threads())


class Cuda:
    """Calls CUDA on the current stream of the device, and does not wait."""

    reason = staticmethod(native.cuda_reason)

    def __call__(self, name: str, device: torch.device, *arguments) -> None:
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream().cuda_stream
            _function(f"cuda_{name}")(*map(_plain, arguments), stream)


CPU, CUDA = Cpu(), Cuda()
