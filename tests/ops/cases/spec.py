"""What parity tests, benchmarks and the goldens of the C++ tests all read about an operator."""

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
    gradients: the arguments to differentiate."""

    family: Family
    call: Callable
    reference: Callable
    cases: dict[str, Callable[[torch.Generator], dict]]
    tolerance: dict[torch.dtype, float]
    gradients: tuple[str, ...] = ()
