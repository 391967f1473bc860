"""Parity of the Triton kernels by Triton's interpreter, on the CPU.

    TRITON_INTERPRET=1 python tests/native/interpreted.py small|large|half

A process of its own, because Triton reads the variable when a kernel is defined. "small" and "large" are the cases in
float32, values and gradients, up to a number of elements and above it; "half" the values in half precision. Prints a
line a case, and ends with 1 where one is off.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.ops import parity
from tests.ops.cases import SPECS

# Elements of all arguments: what these cases leave to "large" enters no kernel, and no branch of one, that they do not.
SMALL = {"values": 16_000, "gradients": 6_000}
# Gradients of few elements that take long; "cubic", "displacement_each", "one_voxel" and "one_voxel_axes" are of the
# same orders, boundaries and fields.
LONG = {("resample3d", case) for case in ("quintic", "quintic_mirror", "far_outside", "one_displacement")}


def chosen(which: str) -> Iterator[tuple[str, str, torch.dtype, str]]:
    """(family, "values" or "gradients", dtype, case) of a part."""
    for name, spec in SPECS.items():
        backend = next((b for b in spec.family.backends if b.name == "triton"), None)
        if backend is None:
            continue
        for what in ("values", "gradients") if spec.gradients and which != "half" else ("values",):
            for dtype, case in parity.tasks(spec, backend, what == "gradients"):
                if (dtype != torch.float32) != (which == "half"):
                    continue
                long = what == "gradients" and (name, case) in LONG
                small = parity.elements(spec, case) <= SMALL[what] and not long
                if which == "half" or small == (which == "small"):
                    yield name, what, dtype, case


def main() -> int:
    wrong = 0
    with parity.nan_filled_empty():
        for name, what, dtype, case in chosen(sys.argv[1]):
            spec = SPECS[name]
            backend = next(b for b in spec.family.backends if b.name == "triton")
            check = (dtype, case) if what == "values" else (case,)
            outcome = getattr(parity, what)(spec, backend, *check)
            print(what, name, str(dtype).removeprefix("torch."), case, outcome.status, outcome.reason, flush=True)
            wrong += outcome.status != "passed"
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
