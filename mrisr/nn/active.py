"""Which voxels group-norm statistics may see: bricks that hold tissue, and 16 voxels around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

BRICK = 8  # voxels of the target grid, as coarse as the network's coarsest level
AIR = 0.05  # mean of a brick, normalised intensity
GROW = 2  # bricks


def active_bricks(y: torch.Tensor) -> torch.Tensor:
    """Bricks of y [N, 1, D, H, W] (normalised start, multiples of 8) that hold tissue or are within 16 voxels of it.

    Returns:
        bool [N, 1, D/8, H/8, W/8], counted from the origin of `y`.
    """
    tissue = (F.avg_pool3d(y, BRICK) > AIR).float()
    return F.max_pool3d(tissue, 2 * GROW + 1, stride=1, padding=GROW) > 0
