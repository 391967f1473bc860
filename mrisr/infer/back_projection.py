"""What of the scan stands in the result beyond the network's answer: one step of back-projection.

The answer as the scanner would have seen it is taken from the scan, and what is left goes onto the answer, as the start
would show it (Irani and Peleg 1991, "Improving resolution by image registration", of one scan). A cut of k-space leaves
nothing: its band stands in every answer as it was measured. Slices do, for no band of theirs is exact; half of it goes
back where their profile is assumed and not stated, which gains nearly as much where it is right and does no harm where
it is not (docs/quality.md).

Where noise is to go, the scan is filtered first, with the answer as the pilot of a Wiener filter. So the answer decides
what is signal, and the scan what the signal is: of the measured band the network alone would leave too much noise and
lose detail. The answer of a network that has not learnt to leave noise out holds the scan's; there the scan is its own
pilot, which takes less of the noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mrisr.infer.corrections import Corrector
from mrisr.infer.plan import Plan
from mrisr.infer.start import Frame
from mrisr.ops.either import as_array, like
from mrisr.physics.degrade import SLICE_KINDS, ForwardModel
from mrisr.physics.wiener import BLOCK, FEWEST_BLOCKS, anatomy, noise_bands, noise_level, wiener, without_noise

if TYPE_CHECKING:
    import torch

    Volume = torch.Tensor | np.ndarray

ASSUMED = 0.5  # of what slices hold beyond the answer: goes back where their profile is not certain
UNKNOWN = (
    f"denoise: too little foreground to know the noise ({FEWEST_BLOCKS} blocks of {BLOCK} x {BLOCK} x {BLOCK} voxels "
    "are needed); "
)
NONE_FOUND = "denoise: no more noise was found than what anatomy alone looks like: nothing is taken out"
NETWORK_SAYS, NOTHING_GOES = "what of the scan is noise the network alone says", "all of it stays"


def share_of(plan: Plan) -> float:
    """How much of what the scan holds beyond the network's answer goes back onto it, 0 to 1.

    All of it where noise is to go and the answer is the pilot, without noise. An answer that holds the scan's noise is
    the one without `denoise`, and so is the share.
    """
    how = plan.options
    if plan.filters and plan.model.denoises:
        return 1.0
    slices = any(p.kind in SLICE_KINDS for p in plan.geometry.psf)
    if not slices or how.mode != "mean" or plan.displaced or how.network_alone or how.consistency == "off":
        return 0.0
    return 1.0 if plan.geometry.psf_certain else ASSUMED


def restore_signal(
    image: Volume, frame: Frame, plan: Plan, forward: ForwardModel, corrector: Corrector, threads: int
) -> tuple[Volume, tuple[str, ...]]:
    """(the network's answer with what goes back onto it, in place; what to warn of).

    Args:
        image: float32 [X, Y, Z], normalised.
    """
    share = share_of(plan)
    if not share and not plan.filters:
        return image, ()
    lr, pilot = as_array(frame.lr), as_array(forward.forward(image))
    rest, texts = np.subtract(lr, pilot, dtype=np.float32), ()
    if share != 1:
        rest *= np.float32(share)
    if plan.filters:
        noise, texts = _noise(lr, pilot, plan, threads)
        rest -= noise
    image += corrector.start(like(rest, frame.lr))[0]
    return image, texts


def _noise(lr: np.ndarray, pilot: np.ndarray, plan: Plan, threads: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """(as much of the scan's noise as is to go, what to warn of)."""
    of_axes = plan.geometry.psf, plan.geometry.source.voxel_size
    bands = noise_bands(*of_axes)
    sigma, threads = noise_level(lr, bands, anatomy(*of_axes)), max(1, threads)
    by_network = plan.model.denoises
    if sigma is None:
        signal = pilot if by_network else lr
    elif by_network:
        signal = without_noise(lr, pilot, sigma, bands, threads)
    else:  # once: a second pass by this weaker pilot costs small lesions contrast
        signal = wiener(lr, lr, sigma, bands, threads)
    noise = np.subtract(lr, signal, dtype=np.float32)
    noise *= np.float32(plan.options.denoise)
    if sigma is None:
        return noise, (UNKNOWN + (NETWORK_SAYS if by_network else NOTHING_GOES),)
    return noise, () if sigma > 0 else (NONE_FOUND,)
