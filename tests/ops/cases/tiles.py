"""blend and gather: inside the volume, past its ends, beside it."""

from __future__ import annotations

import torch

from mrisr.ops import tiles
from tests.ops.cases.spec import Spec


def _case(size, tile, origin, permute=False):
    def build(generator: torch.Generator) -> dict:
        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        volume = draw(*size)
        piece = draw(*tile[::-1]).permute(2, 1, 0) if permute else draw(*tile)
        return dict(volume=volume, tile=piece, origin=list(origin), weights=[draw(n).abs() for n in tile])

    return build


def _add_copy(volume, tile, origin, weights, backend=None) -> torch.Tensor:
    """The volume and the weights are float32 where the tile is in half precision."""
    wide = torch.float64 if volume.dtype == torch.float64 else torch.float32
    return tiles.blend_add_(volume.to(wide, copy=True), tile, origin, [w.to(wide) for w in weights], backend=backend)


def _reference_copy(volume, tile, origin, weights) -> torch.Tensor:
    volume = volume.clone()
    tiles.reference_add(volume, tile, origin, *weights)
    return volume


BLEND = Spec(
    family=tiles.ADD,
    call=_add_copy,
    reference=_reference_copy,
    cases={
        "inside": _case((12, 13, 40), (5, 6, 21), (3, 4, 7)),
        "past_the_end": _case((9, 10, 11), (6, 7, 8), (5, 6, 7)),
        "whole": _case((4, 5, 6), (4, 5, 6), (0, 0, 0)),
        "one_voxel": _case((1, 1, 1), (1, 1, 1), (0, 0, 0)),
        "outside": _case((4, 4, 4), (2, 2, 2), (4, 0, 0)),
        "non_contiguous": _case((9, 8, 20), (5, 6, 7), (1, 2, 3), permute=True),
    },
    # A tile in half precision is widened exactly; the volume is float32 all the same.
    tolerance={torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-6, torch.float16: 1e-6},
)


def _gather_case(size, origin, shape):
    return lambda generator: dict(
        volume=torch.randn(*size, generator=generator, dtype=torch.float64),
        origin=list(origin),
        shape=list(shape),
    )


GATHER = Spec(
    family=tiles.GATHER,
    call=tiles.gather,
    reference=tiles.reference_gather,
    cases={
        "inside": _gather_case((9, 10, 33), (2, 3, 4), (4, 5, 20)),
        "all_sides": _gather_case((5, 6, 7), (-3, -2, -1), (12, 11, 10)),
        "beside": _gather_case((5, 6, 7), (9, -20, 12), (2, 3, 4)),
        "empty": _gather_case((5, 6, 7), (0, 0, 0), (0, 3, 4)),
    },
    tolerance={torch.float32: 0.0, torch.float64: 0.0},
    gradients=("volume",),
)
