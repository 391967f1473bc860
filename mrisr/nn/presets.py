"""Every network size there is, in one table. FLOP are counted per output voxel and step (2 per multiply-add)."""

from __future__ import annotations

from mrisr.errors import ModelError
from mrisr.nn.unet import UNet, UNetConfig

PRESETS = {
    # 3.0 M parameters, 90 kFLOP. Normalised over the channels of a voxel only: local, so neither tiles nor air can
    # change it, and it needs no reduction over the volume. No attention, for the same reason.
    "student": UNetConfig(widths=(32, 64, 128), encoder=(2, 1), middle=2, decoder=(2, 2)),
    # 16.7 M parameters, 360 kFLOP. Twice as wide as the student, whose weights it begins with (`mrisr.nn.grow`).
    "teacher": UNetConfig(
        widths=(64, 128, 256), encoder=(2, 2), middle=3, decoder=(2, 2), attention=2, qk_norm=True
    ),
    # 24.5 M parameters: needs a GPU to train, and patches large enough for attention over the whole volume.
    "teacher-large": UNetConfig(
        widths=(64, 128, 256), encoder=(2, 2), middle=5, decoder=(2, 2), norm="group", attention=3, embed=256,
        global_attention=1, qk_norm=True,
    ),
    # <= 3 M parameters: the teacher for machines without a GPU.
    "teacher-small": UNetConfig(
        widths=(32, 64, 128), encoder=(2, 1), middle=2, decoder=(2, 1), norm="group", attention=1
    ),
    # For tests: seconds on a CPU, every mechanism of the teacher inside.
    "tiny": UNetConfig(widths=(8, 16, 32), encoder=(1, 1), middle=2, decoder=(1, 1), norm="group", attention=2,
                       head_dim=16, embed=32, qk_norm=True),
}  # fmt: skip


def build(preset: str) -> UNet:
    """A new, untrained network of `preset`; an untrained one predicts a residual of zero."""
    if preset not in PRESETS:
        raise ModelError(f"preset: expected one of {sorted(PRESETS)}, found {preset!r}")
    return UNet(PRESETS[preset])
