"""What parity tests, benchmarks and the goldens of the C++ tests all read about an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mrisr.ops._dispatch import Family


@dataclass(frozen=True)
class Spec:
    """family: its backends. call: the public function, takes `backend=`. reference: the PyTorch reference,
    same arguments less `backend`; given float64 it is the oracle. cases: name -> builder of float64/int
    arguments from a torch.Generator. tolerance: dtype -> largest |result - oracle| / max(1, |oracle|).
    gradients: the arguments to differentiate. float64: the backends that take it, beside the reference. impossible:
    backend -> what else it refuses by construction: a case, a (dtype, case), or "gradients"."""

    family: Family
    call: Callable
    reference: Callable
    cases: dict[str, Callable[[torch.Generator], dict]]
    tolerance: dict[torch.dtype, float]
    gradients: tuple[str, ...] = ()
    float64: tuple[str, ...] = ()
    impossible: dict[str, tuple] = field(default_factory=dict)

    def refused(self, backend: str, dtype: torch.dtype, case: str, gradients: bool = False) -> bool:
        """Whether no build and no machine can run this; test_parity asks the backend, too."""
        if dtype == torch.float64 and backend not in ("reference", *self.float64):
            return True
        known = self.impossible.get(backend, ())
        return case in known or (dtype, case) in known or (gradients and "gradients" in known)
