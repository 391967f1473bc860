"""The last stage of a frame: consistency with the scan, plain interpolation where the network does not count, and the
way back to the units of the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrisr.infer.corrections import Corrector, Displacement
from mrisr.infer.fade import Limits
from mrisr.infer.info import ConsistencyInfo
from mrisr.infer.plan import FramePlan, Plan
from mrisr.infer.start import Frame
from mrisr.ops import arrays
from mrisr.ops.either import as_array, like
from mrisr.physics.consistency import Consistency, correct, residual_chi2
from mrisr.physics.degrade import ForwardModel
from mrisr.physics.foreground import certain, tissue
from mrisr.physics.intensity import robust_range

if TYPE_CHECKING:
    import torch

    Volume = torch.Tensor | np.ndarray

MOST_MOVED = 0.1  # by a correction, root mean square in the head, of the intensity range: a multiple of any noise
MOST_MISFIT = 2.0  # chi2 per degree of freedom that a correction may leave


@dataclass(frozen=True, eq=False)
class FrameResult:
    """One finished frame.

    Attributes:
        image: float32 [X, Y, Z] on the target grid, in the units of the input; None where it was given away.
        std: of the samples, likewise, or None.
        plan: what ran.
        seam: largest difference between neighbouring tiles, as a share of the result's range (p99.9 - p0.1); None where
            no two met.
        chi2: consistency with the scan.
        scale: (offset, scale) of the normalised intensities.
        spill_bytes: of the file that maps were kept in.
        displacement: what correcting the geometry did.
    """

    image: np.ndarray | None
    std: np.ndarray | None
    plan: FramePlan
    seam: float | None
    chi2: ConsistencyInfo
    scale: tuple[float, float]
    spill_bytes: int
    displacement: Displacement


def make_consistent(
    image: Volume, frame: Frame, plan: Plan, forward: ForwardModel
) -> tuple[Volume, ConsistencyInfo, tuple[str, ...]]:
    """(the image, corrected by the scan where that was decided; what was done and why; what to warn of)."""
    action, why = plan.consistency.action, plan.consistency.why
    if action == "none":
        return image, ConsistencyInfo(False, why), ()
    if frame.noise is None:
        return image, ConsistencyInfo(False, "too little foreground to know the noise, hence when to stop"), ()
    if action == "measure":
        chi2 = residual_chi2(image, frame.lr, forward, frame.noise)
        return image, ConsistencyInfo(False, why, chi2, chi2, frame.noise), ()
    corrected = correct(image, frame.lr, forward, frame.noise)
    if not corrected.applied:
        why += "; not needed, the result explains the input to within its noise"
    chi2 = corrected.chi2_before, corrected.chi2_after
    messages = _warnings_of(image, corrected, frame.lr) if corrected.applied else ()
    return corrected.image, ConsistencyInfo(corrected.applied, why, *chi2, frame.noise), messages


def _warnings_of(image: torch.Tensor, corrected: Consistency, lr: torch.Tensor) -> tuple[str, ...]:
    """Of a correction that no longer is one: with another point spread than the scan's it invents what explains it."""
    import torch

    inside = max(float(certain(lr).float().mean()), 1 / image.numel())
    change = float(torch.dist(corrected.image, image)) / (inside * image.numel()) ** 0.5  # of a range of about 1
    before, after = corrected.chi2_before, corrected.chi2_after
    if change <= MOST_MOVED and after <= MOST_MISFIT:
        return ()
    return (
        f"consistency changed the result by {100 * change:.0f} % of its range to explain the scan (chi2 {before:.3g} "
        f"before, {after:.3g} after): the point spread is hardly the scan's; state another (--psf), or leave the "
        "correction out (--consistency off)",
    )


def fade(image: Volume, std: Volume | None, frame: Frame, corrector: Corrector, threads: int) -> Volume:
    """The image (in place, as the spread), held to what a scan can have, with plain interpolation in air and beyond the
    end slices."""
    head = tissue(as_array(frame.lr), corrector.fade.open_axes, max(1, threads))
    limits = Limits.of(frame.lr, -frame.scale.offset / frame.scale.scale)
    if _native(image, corrector):
        corrector.fade.apply(image, std, frame.lr, head, limits, max(1, threads))
        return image
    weights = corrector.network_weights(like(head, frame.lr))
    plain = corrector.interpolate(frame.lr)
    if std is not None:
        std *= weights
    return limits.hold(image, plain).sub_(plain).mul_(weights).add_(plain)


def _native(image: Volume, corrector: Corrector) -> bool:
    """Whether the native core can do it: nothing is displaced, and the image lies in the processor's memory."""
    dense = image.flags.c_contiguous if isinstance(image, np.ndarray) else image.is_contiguous()
    return dense and not corrector.corrections.displaces and arrays.in_memory(image) is not None


def finish(
    image: Volume,
    std: Volume | None,
    seam: float | None,
    frame: Frame,
    corrector: Corrector,
    nonnegative: bool,
) -> tuple[np.ndarray, np.ndarray | None, float | None]:
    """(image, spread, seam) as in a `FrameResult`, from normalised ones, which are written over."""
    if seam is not None:
        seam /= robust_range(image)
    scale = frame.scale
    image *= scale.scale
    image += scale.offset
    out, spread = as_array(corrector.restore_bias(image)), None
    if std is not None:
        std *= scale.scale
        spread = as_array(corrector.restore_bias(std))
    if frame.background is not None:
        outside = as_array(corrector.background(like(frame.background.mask, frame.lr)))
        out[outside] = frame.background.value
        if spread is not None:
            spread[outside] = 0
    if nonnegative:
        np.maximum(out, 0, out=out)
    return out, spread, seam
