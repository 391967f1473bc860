"""Which network of a model a job is for: the one that learnt its kind of acquisition alone, or the general one."""

from __future__ import annotations

from mrisr.infer.corrections import Corrections
from mrisr.infer.facts import IN_PLANE, Geometry, Options
from mrisr.nn.vector import GENERAL
from mrisr.physics.degrade import SLICE_KINDS

FINER = 1.05  # acquired width / target voxel from which there is something to find
MOST = {"3d": 4.0, "2d": 8.0}  # what was learnt of that: of cuts of k-space, and across slices
LEAST_ACROSS = 1.5
LESS = 0.02  # what an axis may become coarser by, which none did in training


def network_for(geometry: Geometry, corrections: Corrections, options: Options) -> str:
    """ "2d" where slices become thinner, "3d" where a cut of k-space becomes finer, "general" for the rest.

    The special networks learnt mode "mean" alone, without the corrections, and no further than MOST.
    """
    corrected = corrections.displaces or corrections.shades
    if options.mode != "mean" or corrected:
        return GENERAL
    # Rounded, as the network is told them: headers in float32 are off by as much as decides at a limit.
    steps = [round(p.width / v, 3) for p, v in zip(geometry.psf, geometry.target.voxel_size)]
    if min(steps) < 1 - LESS:
        return GENERAL
    across = [s for s, p in zip(steps, geometry.psf) if p.kind in SLICE_KINDS]
    cuts = [s for s, p in zip(steps, geometry.psf) if p.kind == "kspace"]
    if len(cuts) == 3 and FINER <= max(cuts) <= MOST["3d"]:
        return "3d"
    if len(cuts) == 2 and len(across) == 1 and LEAST_ACROSS <= across[0] <= MOST["2d"] and max(cuts) <= IN_PLANE[1]:
        return "2d"
    return GENERAL
