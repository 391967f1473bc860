"""What the network is told about the acquisition, the noise level and the mode it works in.

Every entry has a "known" flag: absent is stated by the flag, never by a silent zero, and training drops entries at
random so that the network works without them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from mrisr.errors import UsageError
from mrisr.grid import Grid
from mrisr.physics.psf import KINDS

MEAN, SAMPLE = 0, 1
VECTOR_DIM = 40  # room for what later networks are told; weights of 24 are widened by zeros (`widened`)
GUIDANCE_CHANNELS = 8  # log bias (1), displacement (3), log|det J| (1), and the 3 presence flags
GUIDANCE_STRIDE = 8  # guidance fields are smooth: they enter at 1/8 of the target grid, displacements in its voxels
_OF_GUIDANCE = (0, 1, 1, 1, 2, 0, 1, 2)  # which of the three guidances a channel belongs to
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


@dataclass(frozen=True)
class Condition:
    """Conditioning of a batch of N volumes.

    Attributes:
        width: float [N, 3], log2(acquired width / target voxel) per axis, >= 0.
        profile: long [N, 3], index into `mrisr.physics.psf.KINDS` (0 = unknown).
        noise: float [N], noise standard deviation / intensity scale, by `mrisr.physics.intensity.estimate_noise`.
        mode: long [N]: MEAN or SAMPLE.
        steps: long [N], of mode SAMPLE: 0 (an infinitesimal step of the ODE), or n (one of n steps of
            `mrisr.diffusion.schedule.nested_sigmas`, which distilled weights can take).
        width_known: float [N, 3], 1 or 0.
        noise_known: float [N], 1 or 0.
        spacing: float [N, 3], log2(stored voxel / target voxel): a header always says it.
        apodisation: float [N, 3], a value of `APODISATION` per axis.
        apodisation_known: float [N], 1 or 0.
        denoise: float [N], 0 to 1: how much of the noise in the measured band is to go.
        guidance: float [N, 8, D/8, H/8, W/8] as `guidance_channels` makes it, or None (absent: flags 0).
    """

    width: torch.Tensor
    profile: torch.Tensor
    noise: torch.Tensor
    mode: torch.Tensor
    steps: torch.Tensor
    width_known: torch.Tensor
    noise_known: torch.Tensor
    spacing: torch.Tensor
    apodisation: torch.Tensor
    apodisation_known: torch.Tensor
    denoise: torch.Tensor
    guidance: torch.Tensor | None = None

    @classmethod
    def of_acquisition(
        cls,
        psf,
        voxel_size,
        noise: float | None,
        *,
        stored,
        mode: int = MEAN,
        denoise: float = 0.0,
        apodisation_known: bool = False,
        device="cpu",
    ) -> Condition:
        """One volume.

        Args:
            psf: the point spread of each axis.
            voxel_size, stored: 3 values each, mm: of the target, and of the scan as it is stored.
            noise: as a part of the intensity scale; None: unknown.
            mode: MEAN or SAMPLE.
            denoise: 0 (the measured band stays as it is) to 1.
            apodisation_known: whether the windows of `psf` are known; else the network is not told of them.
        """
        width = [max(0.0, math.log2(p.width / float(v))) for p, v in zip(psf, voxel_size)]
        window = [APODISATION[p.window] * apodisation_known for p in psf]
        return cls(
            width=torch.tensor([width], dtype=torch.float32, device=device),
            profile=torch.tensor([[KINDS.index(p.kind) for p in psf]], device=device),
            noise=torch.tensor([0.0 if noise is None else float(noise)], dtype=torch.float32, device=device),
            mode=torch.tensor([mode], device=device),
            steps=torch.tensor([0], device=device),
            width_known=torch.ones(1, 3, device=device),
            noise_known=torch.tensor([0.0 if noise is None else 1.0], device=device),
            spacing=torch.tensor(
                [[math.log2(float(s) / float(v)) for s, v in zip(stored, voxel_size)]],
                dtype=torch.float32,
                device=device,
            ),
            apodisation=torch.tensor([window], dtype=torch.float32, device=device),
            apodisation_known=torch.tensor([float(apodisation_known)], device=device),
            denoise=torch.tensor([float(denoise)], dtype=torch.float32, device=device),
        )

    @classmethod
    def stack(cls, items: list[Condition]) -> Condition:
        """A batch from single conditions; where some have guidance, those without have zeros and flags 0."""
        tensors = {name: torch.cat([getattr(i, name) for i in items]) for name in cls._tensors()}
        guidances = [i.guidance for i in items if i.guidance is not None]
        if not guidances:
            return cls(**tensors)
        if len({g.shape[1:] for g in guidances}) != 1:
            raise UsageError(
                f"Condition.stack: guidance of one shape expected, found {sorted({tuple(g.shape) for g in guidances})}"
            )
        absent = guidances[0].new_zeros(1, *guidances[0].shape[1:])
        parts = [absent.expand(len(i.noise), -1, -1, -1, -1) if i.guidance is None else i.guidance for i in items]
        return cls(**tensors, guidance=torch.cat(parts))

    @staticmethod
    def _tensors() -> tuple[str, ...]:
        return tuple(f.name for f in fields(Condition) if f.name != "guidance")

    def to(self, device) -> Condition:
        """The same on `device`."""
        tensors = {name: getattr(self, name).to(device) for name in self._tensors()}
        return replace(self, **tensors, guidance=None if self.guidance is None else self.guidance.to(device))

    def with_mode(self, mode: int, steps: int = 0) -> Condition:
        """The same with every volume in `mode`; `steps`: of mode SAMPLE, see the attribute."""
        return replace(self, mode=torch.full_like(self.mode, mode), steps=torch.full_like(self.steps, steps))

    def flipped(self, axes) -> Condition:
        """The same with the spatial axes (0, 1, 2) in `axes` mirrored, and displacements along them turned round."""
        if self.guidance is None:
            return self
        guidance = self.guidance.flip([axis + 2 for axis in axes])
        guidance[:, [axis + 1 for axis in axes]] *= -1
        return replace(self, guidance=guidance)

    def drop(self, probability: float, generator: torch.Generator, guidance_probability: float | None = None):
        """Forget entries at random, each with `probability`: widths, profiles, noise level and guidance apart, the
        three guidances with `guidance_probability` where that is given."""
        n = len(self.noise)

        def keep(*shape):
            return (torch.rand(shape, generator=generator) >= probability).to(self.noise.device)

        width, profile, noise, window = keep(n, 1), keep(n, 1), keep(n), keep(n)
        guidance = self.guidance
        if guidance is not None:
            rate = probability if guidance_probability is None else guidance_probability
            mask = torch.rand((n, 3), generator=generator) >= rate
            guidance = guidance * mask[:, list(_OF_GUIDANCE), None, None, None].to(guidance)
        return replace(
            self,
            width=self.width * width,
            width_known=self.width_known * width,
            profile=self.profile * profile,
            noise=self.noise * noise,
            noise_known=self.noise_known * noise,
            apodisation=self.apodisation * window[:, None],
            apodisation_known=self.apodisation_known * window,
            guidance=guidance,
        )

    def vector(self, sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
        """The conditioning vector, float32 [N, VECTOR_DIM]; sigma: [N], the noise level of x."""
        onehot = torch.nn.functional.one_hot(self.profile, len(KINDS)).flatten(1).float()
        parts = {
            "log_sigma": (torch.log(sigma.float() / sigma_data) / LOG_SIGMA_UNIT)[:, None],
            "mode": self.mode.float()[:, None],
            "width": self.width,
            "width_known": self.width_known,
            "profile": onehot,
            "noise": (self.noise / NOISE_UNIT)[:, None],
            "noise_known": self.noise_known[:, None],
            "step_share": torch.where(self.steps > 0, 1.0 / self.steps.clamp(min=1), 0.0)[:, None],
            "spacing": self.spacing,
            "apodisation": self.apodisation,
            "apodisation_known": self.apodisation_known[:, None],
            "denoise": self.denoise[:, None],
        }
        entries = torch.cat([parts[name] for name in VECTOR_LAYOUT], dim=1)
        return torch.nn.functional.pad(entries, (0, VECTOR_DIM - entries.shape[1]))

    def guidance_for(self, shape) -> torch.Tensor:
        """Guidance [N, 8, D/8, H/8, W/8] for a target grid of `shape`: zeros with flags 0 where absent."""
        size = tuple(s // GUIDANCE_STRIDE for s in shape)
        if self.guidance is None:
            return torch.zeros(len(self.noise), GUIDANCE_CHANNELS, *size, device=self.noise.device)
        if tuple(self.guidance.shape[1:]) != (GUIDANCE_CHANNELS, *size):
            raise UsageError(f"guidance: expected [N, {GUIDANCE_CHANNELS}, {size}], found {tuple(self.guidance.shape)}")
        return self.guidance


def widened(embedding: torch.Tensor) -> torch.Tensor:
    """The first weights of an embedding [embed, FIRST_VERSION] for today's vector: what a network was never told of it
    ignores, the spare place of the first vector included, whose weights are as random as they were drawn."""
    return torch.nn.functional.pad(embedding[:, :FIRST_USED], (0, VECTOR_DIM - FIRST_USED))


def guidance_channels(log_bias=None, displacement=None, log_det=None) -> torch.Tensor:
    """What a network is told of the corrections that were made: [1, 8, D/8, H/8, W/8]; zeros, flag 0, where None.

    Args: fields at the centres of bricks of 8^3 target voxels (`brick_grid`), [D/8, H/8, W/8] each.
        log_bias: logarithm of the field that was divided by.
        displacement: [3, ...], from a voxel to where it was read, in target voxels along the axes of the volume.
        log_det: logarithm of the factor on the intensity.
    """
    fields_there = [t for t in (log_bias, displacement, log_det) if t is not None]
    if not fields_there:
        raise UsageError("guidance_channels: expected at least one of log_bias, displacement and log_det")
    channels = fields_there[0].new_zeros(1, GUIDANCE_CHANNELS, *fields_there[0].shape[-3:], dtype=torch.float32)
    for first, flag, field in ((0, 5, log_bias), (1, 6, displacement), (4, 7, log_det)):
        if field is not None:
            unit = GUIDANCE_STRIDE if field is displacement else 1
            channels[0, first : first + field.shape[:-3].numel()] = field / unit
            channels[0, flag] = 1
    return channels


def brick_grid(grid: Grid) -> Grid:
    """The centres of the bricks of 8^3 voxels of `grid`, the last ones cut off by its end or not."""
    bricks = np.eye(4)
    bricks[:3] = np.c_[GUIDANCE_STRIDE * np.eye(3), np.full(3, (GUIDANCE_STRIDE - 1) / 2)]
    return Grid(tuple(-(-n // GUIDANCE_STRIDE) for n in grid.shape), grid.affine @ bricks)
