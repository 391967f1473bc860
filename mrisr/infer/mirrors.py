"""Symmetric averaging: the network also sees the scan mirrored, and the answers, mirrored back, are averaged.

Training mirrors at random, so every mirrored answer is as good as the plain one; where they differ, the difference is
the network's own, and the average has less of it. Each set of mirrorings is a group that no exchange of axes changes:
mirroring the scan by one of its members mirrors the result and does nothing else, whatever the order of the axes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mrisr.infer import loop, tiles
from mrisr.nn.condition import Condition

# Stored axes that are mirrored together.
MIRRORINGS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((),),
    2: ((), (0, 1, 2)),
    4: ((), (0, 1), (0, 2), (1, 2)),
    8: ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)),
}


def residual(
    job,
    plan: tiles.TilePlan,
    y: torch.Tensor,
    cond: Condition,
    plan_for: Callable[[torch.Tensor], tiles.TilePlan],
):
    """(residual, standard deviation or None) like `loop.residual`, averaged over the job's mirrorings.

    Args:
        job: a `mrisr.infer.pipeline.Job`.
        y: [X, Y, Z], the normalised start on the target grid.
        plan_for: mirrored start -> its plan, which is its own (bricks are counted from the other corner) and the job's
            until the next one.
    """
    mirrorings = MIRRORINGS[job.options.ensemble]
    if len(mirrorings) == 1:
        return loop.residual(job, plan, y, job.told(cond), job.report.tick)
    total, seams, spill = torch.zeros_like(y), [], job.spill
    for k, axes in enumerate(mirrorings):

        def tick(fraction, k=k):
            job.report.tick((k + fraction) / len(mirrorings))

        shown = y.flip(axes) if axes else y
        found, _ = loop.residual(job, plan_for(shown) if axes else plan, shown, job.told(cond, axes), tick)
        total += found.flip(axes) if axes else found
        seams += [] if job.seam is None else [job.seam]
    job.plan, job.spill = plan, spill
    job.seam = max(seams, default=None)  # of the average it is at most that
    return total.div_(len(mirrorings)), None
