"""What stands in for the network where a test is not about voxels; and waiting for what is to happen."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np

from mrisr import grid as grids


def plain(volume, progress, voxel_size=1.0, **options):
    """What `upscale` does to geometry, by nearest neighbours: (result, info)."""
    target = grids.plan(volume.grid, voxel_size=voxel_size)
    back = np.linalg.inv(volume.affine) @ target.affine
    index = [
        np.clip(np.rint(np.arange(n) * back[a, a] + back[a, 3]).astype(int), 0, volume.data.shape[a] - 1)
        for a, n in enumerate(target.shape)
    ]
    progress("network", 0.5)
    result = volume.replace(volume.data[np.ix_(*index)], target.affine)
    return result, SimpleNamespace(model="plain", weights="0", warnings=[])


def slow(seconds: float):
    """`plain` that takes a while and reports its progress often."""

    def upscale(volume, progress, **options):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            progress("network", 0.5)
            time.sleep(0.01)
        return plain(volume, progress)

    return upscale


def wait_until(true, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)
