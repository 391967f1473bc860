"""Where a head is: the mask that metrics are taken in."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from mrisr.errors import InputError


def head_mask(volume: np.ndarray, voxel_size=(1.0, 1.0, 1.0), closing_mm: float = 6.0) -> np.ndarray:
    """Foreground of a head (or of a skull-stripped brain): bool [X, Y, Z].

    Half of Otsu's threshold (Otsu 1979; the whole of it would cut away CSF and grey matter), the largest
    connected component, closing by a box of +-`closing_mm`, then holes filled. `voxel_size` in mm.
    Raises InputError where the volume is constant.
    """
    from scipy import ndimage

    volume = np.asarray(volume, dtype=np.float32)
    air = min(0.0, float(volume.min()))  # magnitude images: air is zero, even in a crop that holds none
    mask = volume > air + 0.5 * (otsu_threshold(volume) - air)
    mask = _largest_component(ndimage.label(mask)[0])
    radius = [max(1, round(closing_mm / v)) for v in voxel_size]
    # Erosion counts what is beyond the array as head: a crop through the head stays a crop through the head.
    mask = ~_dilate(~_dilate(mask, radius), radius)
    return _fill_holes(mask, ndimage)


def otsu_threshold(volume: np.ndarray, bins: int = 256) -> float:
    """The threshold that separates two classes best (Otsu, IEEE SMC 1979), in intensity units:
    histogram from the 0.1st to the 99.9th percentile."""
    low, high = np.percentile(volume, [0.1, 99.9])
    if not high > low:
        raise InputError(f"otsu_threshold: the volume is constant (0.1st and 99.9th percentile are both {low})")
    count, edges = np.histogram(volume, bins=bins, range=(low, high))
    middle = 0.5 * (edges[1:] + edges[:-1])
    below = np.cumsum(count)
    above = count.sum() - below
    total = np.cumsum(count * middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(middle[int(np.nanargmax(between))])


def erode(mask: np.ndarray, radius) -> np.ndarray:
    """Erosion by a box of +-radius voxels per axis; outside the array counts as inside the mask."""
    return ~_dilate(~np.asarray(mask, bool), radius)


def _dilate(mask: np.ndarray, radius) -> np.ndarray:
    x = torch.as_tensor(mask, dtype=torch.uint8)[None, None].float()
    for axis, r in enumerate(radius):  # a box is separable
        window, padding = [1, 1, 1], [0, 0, 0]
        window[axis], padding[axis] = 2 * int(r) + 1, int(r)
        x = functional.max_pool3d(x, window, stride=1, padding=padding)
    return x[0, 0].numpy() > 0.5


def _largest_component(labels: np.ndarray) -> np.ndarray:
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == int(sizes.argmax())


def _fill_holes(mask: np.ndarray, ndimage) -> np.ndarray:
    # Labelling the outside once is an order of magnitude faster than ndimage.binary_fill_holes on a head.
    labels, count = ndimage.label(~mask)
    touching = np.zeros(count + 1, bool)
    for axis in range(3):
        for end in (0, -1):
            touching[np.unique(np.take(labels, end, axis=axis))] = True
    touching[0] = True  # label 0 is the mask itself
    return mask | ~touching[labels]
