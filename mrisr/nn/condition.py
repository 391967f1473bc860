"""What the network is told about the acquisition, the noise level and the mode it works in.

Every entry has a "known" flag: absent is stated by the flag, never by a silent zero, and training drops entries at
random so that the network works without them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from mrisr.errors import UsageError
from mrisr.nn.vector import (
    FIRST_USED,
    GUIDANCE_CHANNELS,
    GUIDANCE_STRIDE,
    LOG_SIGMA_UNIT,
    MEAN,
    NOISE_UNIT,
    OF_GUIDANCE,
    VECTOR_DIM,
    VECTOR_LAYOUT,
    entries_of,
)
from mrisr.physics.psf import KINDS


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
        how = dict(mode=mode, denoise=denoise, windows=apodisation_known)
        entries = entries_of(psf, voxel_size, noise, stored=stored, **how)
        integers = {name: torch.tensor([entries.pop(name)], device=device) for name in ("profile", "mode")}
        floats = {name: torch.tensor([v], dtype=torch.float32, device=device) for name, v in entries.items()}
        widths_known = torch.ones(1, 3, device=device)
        return cls(**floats, **integers, steps=torch.tensor([0], device=device), width_known=widths_known)

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
            guidance = guidance * mask[:, list(OF_GUIDANCE), None, None, None].to(guidance)
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
