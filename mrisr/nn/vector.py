"""What one volume's conditioning vector says, in plain numbers: its layout, and its entries of an acquisition.

`mrisr.nn.condition` makes batches of tensors of it; a plain job on a CPU makes its one vector here, without PyTorch.
"""

from __future__ import annotations

import math

import numpy as np

from mrisr.grid import Grid
from mrisr.physics.psf import KINDS

# Networks of one name (`mrisr.weights.registry`): for whatever comes, and for one kind of acquisition.
GENERAL, SPECIAL = "general", ("2d", "3d")

MEAN, SAMPLE = 0, 1
VECTOR_DIM = 40  # room for what later networks are told; weights of 24 are widened by zeros (`widened`)
GUIDANCE_CHANNELS = 8  # log bias (1), displacement (3), log|det J| (1), and the 3 presence flags
GUIDANCE_STRIDE = 8  # guidance fields are smooth: they enter at 1/8 of the target grid, displacements in its voxels
OF_GUIDANCE = (0, 1, 1, 1, 2, 0, 1, 2)  # which of the three guidances a channel belongs to
NOISE_UNIT = 0.05  # noise levels enter divided by this, so that 5 % of the intensity scale is 1
LOG_SIGMA_UNIT = 4  # log(sigma / sigma_data) enters divided by this
WIDTH_DECIMALS = 3  # log2 widths that agree to so many places are equal when axes are ordered
APODISATION = {"box": 0.0, "tukey": 0.5, "hann": 1.0}  # how much of k-space a window bends
# Entry of the vector -> (first place, number of places); the rest is zero. Profiles are one-hot, axis by axis.
_NEXT = 8 + 3 * len(KINDS)
VECTOR_LAYOUT = {
    "log_sigma": (0, 1),
    "mode": (1, 1),
    "width": (2, 3),
    "width_known": (5, 3),
    "profile": (8, 3 * len(KINDS)),
    "noise": (_NEXT, 1),
    "noise_known": (_NEXT + 1, 1),
    "step_share": (_NEXT + 2, 1),  # 1 / n where one of n steps is asked for; distilled weights alone know it
    "spacing": (_NEXT + 3, 3),  # log2(stored voxel / target voxel): overlap, gaps and zero-filling beside the width
    "apodisation": (_NEXT + 6, 3),
    "apodisation_known": (_NEXT + 9, 1),
    "denoise": (_NEXT + 10, 1),
}
FIRST_VERSION, FIRST_USED = 24, 23  # places of the vector of versions 0 and 1, and those of them that meant something
STEP_SHARE = VECTOR_LAYOUT["step_share"][0]
GUIDANCE_LAYOUT = (
    "log_bias", "displacement_d", "displacement_h", "displacement_w", "log_jacobian",
    "bias_known", "displacement_known", "jacobian_known",
)  # fmt: skip


def canonical_order(psf, voxel_size) -> tuple[int, int, int]:
    """The order of axes in which the network sees a scan: by acquired width in target voxels, coarsest last.

    A slice axis is then always the last one, and the network need not learn the same thing along three axes.
    `x.permute(order)` goes there; axes of equal width keep their order.
    """
    width = [max(0.0, math.log2(p.width / float(v))) for p, v in zip(psf, voxel_size)]
    return tuple(sorted(range(3), key=lambda axis: round(width[axis], WIDTH_DECIMALS)))


def windowed(psf) -> bool:
    """Whether a point spread names a window of k-space: then somebody stated it, and the network is told."""
    return any(p.window != "box" for p in psf)


def entries_of(
    psf, voxel_size, noise: float | None, *, stored, mode: int = MEAN, denoise: float = 0.0, windows: bool = False
) -> dict[str, list[float] | float]:
    """What the network is told of an acquisition; the arguments are those of `Condition.of_acquisition`, whose fields
    these are. `windows`: whether those of `psf` are known."""
    return {
        "width": [max(0.0, math.log2(p.width / float(v))) for p, v in zip(psf, voxel_size)],
        "profile": [KINDS.index(p.kind) for p in psf],
        "noise": 0.0 if noise is None else float(noise),
        "mode": mode,
        "noise_known": 0.0 if noise is None else 1.0,
        "spacing": [math.log2(float(s) / float(v)) for s, v in zip(stored, voxel_size)],
        "apodisation": [APODISATION[p.window] * windows for p in psf],
        "apodisation_known": float(windows),
        "denoise": float(denoise),
    }


def mean_vector(entries: dict[str, list[float] | float], log_sigma: float) -> np.ndarray:
    """The vector float32 [1, VECTOR_DIM] of one volume in mode "mean": `Condition.vector`.

    Args:
        entries: from `entries_of`.
        log_sigma: log(sigma / sigma_data), as `mrisr.diffusion.precond.mean_constants` gives it.
    """
    values = {name: np.float32(value) for name, value in entries.items() if name in VECTOR_LAYOUT}
    values["log_sigma"] = np.float32(log_sigma) / np.float32(LOG_SIGMA_UNIT)
    values |= {"width_known": np.float32(1), "step_share": np.float32(0)}
    values["profile"] = np.eye(len(KINDS), dtype=np.float32)[entries["profile"]].ravel()
    values["noise"] /= np.float32(NOISE_UNIT)
    vector = np.zeros((1, VECTOR_DIM), np.float32)
    for name, (first, count) in VECTOR_LAYOUT.items():
        vector[0, first : first + count] = values[name]
    return vector


def input_shapes(size: tuple[int, int, int]) -> tuple[tuple[int, ...], ...]:
    """Of x, y, vector and guidance, for one volume of `size` (multiples of `GUIDANCE_STRIDE`)."""
    coarse = (n // GUIDANCE_STRIDE for n in size)
    return (1, 1, *size), (1, 1, *size), (1, VECTOR_DIM), (1, GUIDANCE_CHANNELS, *coarse)


def brick_grid(grid: Grid) -> Grid:
    """The centres of the bricks of 8^3 voxels of `grid`, the last ones cut off by its end or not."""
    bricks = np.eye(4)
    bricks[:3] = np.c_[GUIDANCE_STRIDE * np.eye(3), np.full(3, (GUIDANCE_STRIDE - 1) / 2)]
    return Grid(tuple(-(-n // GUIDANCE_STRIDE) for n in grid.shape), grid.affine @ bricks)
