"""The first stage of a frame: its intensity scale, its noise, and the network's start on the target grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrisr.infer.corrections import Corrector, Displacement
from mrisr.infer.plan import Plan
from mrisr.nn.vector import MEAN, SAMPLE, entries_of, mean_vector, windowed
from mrisr.ops.either import flipped
from mrisr.physics.foreground import Background, bricks, masked_background, without_foreign_value
from mrisr.physics.intensity import OUTLIER, Scale, estimate_noise, robust_scale

if TYPE_CHECKING:
    import torch

    from mrisr.nn.condition import Condition

    Volume = torch.Tensor | np.ndarray


@dataclass(frozen=True, eq=False)
class Frame:
    """What is known of one frame before the network runs.

    Attributes:
        lr: the scan without its bias, normalised: float32 [x, y, z], on the device, or an array.
        scale: what it was normalised by.
        noise: standard deviation as a part of the scale, or None: too little foreground.
        background: voxels of the scan whose value in the result is known, or None.
        displacement: what correcting its geometry does.
        warnings: for the user.
    """

    lr: Volume
    scale: Scale
    noise: float | None
    background: Background | None
    displacement: Displacement
    warnings: tuple[str, ...]


def start(data: np.ndarray, mask: np.ndarray | None, corrector: Corrector) -> tuple[Frame, Volume]:
    """(what is known of a frame, its start y: float32 [X, Y, Z] on the target grid).

    Args:
        data: float32 [x, y, z].
        mask: bool, the head, or None.
    """
    masked = masked_background(data)
    if masked is not None:
        data = without_foreign_value(data, masked)
    unbiased = corrector.remove_bias(data)
    scale = robust_scale(unbiased)
    lr = _normalise(np.ascontiguousarray(unbiased), scale)
    # Of the scan as it was acquired: dividing by a field makes the noise uneven, which the network is told apart.
    noise = estimate_noise(lr if unbiased is data else _normalise(data, scale))
    if corrector.device is not None:
        lr = _on_device(lr, corrector.device)
    y, displacement = corrector.start(lr)
    warnings = (_outliers(scale),) if scale.outliers else ()
    return Frame(lr, scale, noise, _background(masked, mask), displacement, warnings + displacement.warnings), y


def _normalise(data: np.ndarray, scale: Scale) -> np.ndarray:
    values = data - np.float32(scale.offset)
    values /= np.float32(scale.scale)
    return values


def _on_device(lr: np.ndarray, device: torch.device | str) -> torch.Tensor:
    import torch

    return torch.from_numpy(lr).to(device)


def foregrounds(y: Volume, mirrorings: tuple[tuple[int, ...], ...], threads: int) -> list[np.ndarray]:
    """The bricks that hold tissue, of the start mirrored in every way; bricks are counted from a corner, so that each
    has its own."""
    return [bricks(flipped(y, axes), max(1, threads)) for axes in mirrorings]


def conditions(plan: Plan, frame: Frame, corrector: Corrector) -> tuple[Condition | np.ndarray, ...]:
    """What the network is told of the acquisition, and of the corrections to the grid as each mirroring shows it; where
    the stages work on arrays, the vector of it."""
    geometry = plan.geometry
    of_axes = (geometry.psf, geometry.target.voxel_size, geometry.source.voxel_size)
    psf, voxel_size, stored = (tuple(v[i] for i in geometry.order) for v in of_axes)
    mode = SAMPLE if plan.options.mode == "sample" else MEAN
    of_scan = dict(stored=stored, mode=mode, denoise=plan.denoise)
    if corrector.device is None:
        entries = entries_of(psf, voxel_size, frame.noise, windows=windowed(psf), **of_scan)
        return (mean_vector(entries, plan.model.log_sigma),) * len(plan.mirrorings)
    from mrisr.nn.condition import Condition

    of_scan |= dict(apodisation_known=windowed(psf), device=corrector.device)
    cond = Condition.of_acquisition(psf, voxel_size, frame.noise, **of_scan)
    return tuple(corrector.add_guidance(cond, geometry.order, axes) for axes in plan.mirrorings)


def _outliers(scale: Scale) -> str:
    return (
        f"the brightest {100 * scale.outliers:.2g} % of the foreground are over {OUTLIER:g} times as bright as the "
        "rest (an implant, a vessel, spikes?): the intensity scale was taken without them; look at the result there"
    )


def _background(masked: Background | None, mask: np.ndarray | None) -> Background | None:
    """What is to be one exact value in the result: outside of the stated mask, or else what the scan has masked."""
    if mask is None:
        return masked
    return Background(~mask, 0.0 if masked is None else masked.value)
