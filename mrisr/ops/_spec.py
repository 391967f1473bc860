"""What an operator family promises, in a form that parity tests, benchmarks and C++ goldens all read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mrisr.ops._dispatch import Family


@dataclass(frozen=True)
class Spec:
    """family: its backends. call: the public function, takes `backend=`. reference: the PyTorch reference,
    same arguments less `backend`; given float64 it is the oracle. cases: name -> builder of float64/int
    arguments from a torch.Generator. tolerance: dtype -> largest |result - oracle| / max(1, |oracle|).
    gradients: the arguments to differentiate. onnx: the function that the exporter's translation table gets
    for the operator `mrisr::<family>`, where the family is in a network."""

    family: Family
    call: Callable
    reference: Callable
    cases: dict[str, Callable[[torch.Generator], dict]]
    tolerance: dict[torch.dtype, float]
    gradients: tuple[str, ...] = ()
    onnx: Callable | None = None


def always() -> None:
    """`available` of a reference: PyTorch is there, or nothing of this would have been imported."""
    return


def takes_all(*args, **kwargs) -> None:
    """`accepts` of a reference."""
    return


def address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def threads() -> int:
    """The native core uses as many threads as PyTorch does, so that one switch (torch.set_num_threads) rules
    both."""
    return torch.get_num_threads()
