"""Inputs of the benchmarks, made once for all of them, without any file of the user's."""

from __future__ import annotations

import numpy as np

REFERENCE_SHAPE = (182, 218, 182)  # voxels of 1 mm; 0.7 mm makes 260 x 311 x 260 of it
REFERENCE_TARGET = 0.7
INPUTS = ("mni", "head")


def reference_scan(kind: str = "mni") -> np.ndarray:
    """The reference job's input, float32 [182, 218, 182], 1 mm.

    kind: "mni", the 1 mm MNI152 template that nilearn brings (a brain without skull, so much of it is air);
    "head", a made-up head with scalp and noise that fills the field of view as an uncropped scan does.
    """
    if kind == "mni":
        from nilearn.datasets import load_mni152_template

        return centred(load_mni152_template(resolution=1).get_fdata(dtype=np.float32) * 1000, REFERENCE_SHAPE)
    if kind == "head":
        return head(REFERENCE_SHAPE)
    raise ValueError(f"input: expected one of {INPUTS}, found {kind!r}")


def centred(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Cut or zero-pad every axis to `shape` around the middle."""
    for axis, n in enumerate(shape):
        extra = volume.shape[axis] - n
        if extra >= 0:
            volume = np.take(volume, range(extra // 2, extra // 2 + n), axis)
        else:
            widths = [(0, 0)] * volume.ndim
            widths[axis] = (-extra // 2, -extra - -extra // 2)
            volume = np.pad(volume, widths)
    return np.ascontiguousarray(volume)


def head(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Folded tissue, a dark skull and a bright scalp, cut by the lower face of the view; 2 % noise."""
    x, y, z = (
        np.linspace(-1, 1, n)[tuple(None if a != k else slice(None) for a in range(3))] for k, n in enumerate(shape)
    )
    radius = np.sqrt((x / 0.88) ** 2 + (y / 0.92) ** 2 + (np.maximum(z, -0.3) / 0.9) ** 2)
    folds = 600 + 200 * np.sin(31 * x + 9 * z) * np.sin(27 * y) * np.sin(29 * z + 7 * y)
    clean = np.select([radius < 0.82, radius < 0.9, radius < 1.0], [folds, 60.0, 900.0], 0.0)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, *shape), dtype=np.float32) * 15
    return np.hypot(clean + noise[0], noise[1]).astype(np.float32)


def network_inputs(shape: tuple[int, int, int]) -> tuple:
    """What a network is given in mode `mean`: (x of zeros, y, vector, guidance of zeros), float32, on the CPU."""
    import torch

    from mrisr.nn.vector import GUIDANCE_CHANNELS, VECTOR_DIM

    generator = torch.Generator().manual_seed(0)
    y = torch.rand(1, 1, *shape, generator=generator)
    vector = torch.randn(1, VECTOR_DIM, generator=generator)
    return torch.zeros_like(y), y, vector, torch.zeros(1, GUIDANCE_CHANNELS, *(n // 8 for n in shape))
