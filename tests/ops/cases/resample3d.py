"""resample3d: orders, boundaries, displacements, parallel and turned grids."""

from __future__ import annotations

import torch

from mrisr.ops.resample import centred_matrix
from mrisr.ops.resample.backends import FAMILY
from mrisr.ops.resample.spline import reference, resample3d
from tests.ops.cases.spec import Spec


def _case(size, target, ratio=None, order=5, boundary="linear", move=1.0, offset=0.0, turn=0.0, fields=None):
    """ratio: new / old spacing; move: size of the displacement, voxels (None: no field); turn: off-diagonal entries."""

    def build(generator: torch.Generator) -> dict:
        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        matrix = centred_matrix(size[-3:], target, ratio or [a / max(1, b) for a, b in zip(size[-3:], target)])
        matrix[:, :3] += turn * draw(3, 3).numpy()
        field = None if move is None else move * draw(*(fields or ()), 3, *target)
        return dict(
            x=draw(*size) + offset,
            shape=list(target),
            matrix=torch.from_numpy(matrix),
            displacement=field,
            order=order,
            boundary=boundary,
        )

    return build


SPEC = Spec(
    family=FAMILY,
    call=resample3d,
    reference=reference,
    cases={
        "quintic": _case((6, 7, 9), (3, 4, 7)),
        "cubic": _case((6, 7, 9), (4, 5, 6), order=3),
        "linear": _case((6, 7, 9), (4, 5, 6), order=1),
        "quintic_mirror": _case((5, 3, 4), (3, 4, 5), boundary="mirror", move=4.0),
        "cubic_mirror": _case((4, 5, 6), (2, 1, 70), order=3, boundary="mirror", move=3.0),
        "far_outside": _case((4, 3, 5), (3, 4, 3), move=20.0),
        "turned": _case((5, 4, 3), (4, 3, 4), turn=0.2, move=None),
        "separable": _case((4, 5, 3), (6, 7, 2), ratio=(1 / 1.5, 0.7, 1.6), move=None),
        "one_displacement": _case((2, 3, 5, 4, 6), (4, 5, 6), order=3),
        "displacement_each": _case((2, 2, 4, 5, 3), (3, 4, 5), order=3, fields=(2,)),
        "one_voxel": _case((1, 1, 1), (1, 1, 1)),
        "one_voxel_axes": _case((1, 6, 1), (2, 5, 3), boundary="mirror"),
        "empty": _case((4, 4, 4), (0, 3, 4)),
        "no_volumes": _case((0, 4, 4, 4), (2, 3, 4)),
        "large_offset": _case((4, 5, 3), (4, 3, 5), move=None, turn=0.1, offset=1e4),
    },
    # Half precision is sampled in float32, whichever half it is: one of them shows it.
    tolerance={torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 1e-2},
    gradients=("x", "displacement"),
    float64=("native",),
    # Parallel grids without displacement are axis_apply's, whose native backend takes float32.
    impossible={"native": ((torch.float64, "separable"), (torch.bfloat16, "separable"))},
)
