"""What tells a label map from a scan, by voxels alone; also one that an interpolation has made fractions of."""

from __future__ import annotations

import numpy as np

__all__ = ["fractions"]

LABEL_COUNT = 200  # of more levels the commonest is left out of what follows: it may be a scan's background
AGREE = 0.4  # of neighbours three voxels apart, within the head: labels do, grey levels do not
WHOLE = 1e-3  # so near to a whole number is one
MOSTLY_WHOLE = 0.4  # of a label map that was interpolated linearly, which has fractions at its edges
# Of one that was interpolated by a spline, which ripples inside of structures, too, but ever less: of 67 people's label
# maps, by cubic splines, 1.7 to 35 % are whole there, and 98 % of neighbours agree. Of scans in fractions 0.6 % are at
# most, where their grey levels do not lie on a few steps, as `DIFFERENT` tells.
CORES, CORES_AGREE, DIFFERENT = 0.01, 0.9, 0.1
COMMON = 0.01  # of what is labelled: a label that counts


def fractions(sample: np.ndarray) -> float | None:
    """The share of fractions in what is labelled: 0.0 for a label map, more for one that was interpolated, None where
    these are no labels, which are whole numbers in patches whose neighbours agree; a scan's hardly ever do.

    Where an interpolated map was rounded afterwards, or stored in steps of more than `WHOLE`, nothing tells its wrong
    labels from true ones for certain.

    Args:
        sample: [X, Y, Z, ...], every third voxel along each axis.
    """
    nearest = np.rint(sample)
    head = nearest != 0
    labelled = head & (np.abs(sample - nearest) < WHOLE)
    part = labelled.sum() / max(1, head.sum())
    if part < CORES:
        return None
    levels, counts = np.unique(nearest[labelled], return_counts=True)
    inside = labelled
    if len(levels) > LABEL_COUNT:  # as parcellations have, and scans: those may have a background of one value
        inside = inside & (nearest != levels[counts.argmax()])
    pairs = inside[1:] & inside[:-1]
    agreement = float((nearest[1:] == nearest[:-1])[pairs].mean()) if pairs.any() else 0.0
    if agreement <= AGREE:
        return None
    if (sample == nearest).all():
        return 0.0
    common = int((counts > COMMON * counts.sum()).sum())
    linear = part >= MOSTLY_WHOLE and common > 1  # one: a scan on a background of one value
    spline = agreement > CORES_AGREE and common > 2 and _differ(sample[head & ~labelled])
    return float(1 - part) if linear or spline else None


def _differ(values: np.ndarray) -> bool:
    """Whether few values come twice, as a spline makes them; the grey levels of a scan do, also of a scaled one."""
    return len(np.unique(values)) > DIFFERENT * len(values)
