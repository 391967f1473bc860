"""What of the measured band stands in a result from which noise was to go.

The network's answer, seen by the scanner, is the pilot of a Wiener filter of the scan; what the filtered scan holds
beyond that answer goes onto it, as the start would show it. So the answer decides what is signal, and the scan what the
signal is: of the measured band the network alone would leave too much noise and lose detail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrisr.infer.corrections import Corrector
from mrisr.infer.plan import Plan
from mrisr.infer.start import Frame
from mrisr.ops.either import as_array, like
from mrisr.physics.degrade import ForwardModel
from mrisr.physics.wiener import BLOCK, FEWEST_BLOCKS, noise_bands, noise_level, wiener

if TYPE_CHECKING:
    import numpy as np
    import torch

    Volume = torch.Tensor | np.ndarray

UNKNOWN = (
    f"denoise: too little foreground to know the noise ({FEWEST_BLOCKS} blocks of {BLOCK} x {BLOCK} x {BLOCK} voxels "
    "are needed); what of the scan is noise the network alone says"
)


def restore_signal(
    image: Volume, frame: Frame, plan: Plan, forward: ForwardModel, corrector: Corrector, threads: int
) -> tuple[Volume, tuple[str, ...]]:
    """(the network's answer with what of the scan is signal, in place; what to warn of).

    Args:
        image: float32 [X, Y, Z], normalised.
    """
    if not plan.filters:
        return image, ()
    lr = as_array(frame.lr)
    voxel_size = plan.geometry.source.voxel_size
    bands = noise_bands(plan.geometry.psf, voxel_size)
    sigma = noise_level(lr, voxel_size, bands)
    pilot = as_array(forward.forward(image))
    signal = pilot.copy() if sigma is None else wiener(lr, pilot, sigma, bands, max(1, threads))
    signal -= lr
    signal *= plan.options.denoise
    signal += lr
    signal -= pilot
    image += corrector.start(like(signal, frame.lr))[0]
    return image, () if sigma is not None else (UNKNOWN,)
