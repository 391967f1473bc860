"""What planning starts from: the options, and facts of the scan, the model and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mrisr.errors import UsageError
from mrisr.grid import Grid
from mrisr.infer import memory, tiles
from mrisr.infer.corrections import learnt
from mrisr.infer.engines import Engine
from mrisr.nn.vector import canonical_order
from mrisr.physics.acquired import estimate_acquired, slice_profile
from mrisr.physics.psf import PSF, parse_psf, thick_slices
from mrisr.volume import Volume

IN_PLANE = (1.0, 2.0)  # of slices: acquired width / target voxel that was learnt
WINDOW_ALIGN = 64  # attention windows are 8^3 at 1/8 resolution, counted from the volume's origin

# Number of mirrorings that are averaged -> the stored axes that are mirrored together. Each set is a group that no
# exchange of axes changes: mirroring the scan by one of its members mirrors the result and does nothing else.
MIRRORINGS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((),),
    2: ((), (0, 1, 2)),
    4: ((), (0, 1), (0, 2), (1, 2)),
    8: ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)),
}


@dataclass(frozen=True)
class Options:
    """The arguments of `mrisr.upscale` that say how; already checked by `mrisr.api`."""

    device: str = "auto"
    engine: str = "auto"
    threads: int | None = None
    precision: str = "auto"
    mode: str = "mean"
    steps: int = 1
    samples: int = 1
    seed: int = 0
    ensemble: int = 1
    denoise: float = 0.0
    psf: Any = "auto"
    consistency: str = "auto"
    memory: str | int | None = None
    tile: int | tuple[int, int, int] | str | None = None
    ends: str = "fade"
    nonnegative: bool = False
    network_alone: bool = False  # where noise goes: of the measured band, too, the network's answer stands
    holds_frames: bool = True  # of a 4D result; else each is given away when it is done

    def filters(self, displaced: bool) -> bool:
        """Whether noise is filtered out of the scan: of no sample, and of no scan (`displaced`, by corrected geometry)
        that the answer does not show."""
        return self.denoise > 0 and self.mode == "mean" and not (displaced or self.network_alone)


@dataclass(frozen=True)
class Geometry:
    """What planning knows of a scan.

    Attributes:
        source, target: its grid, and that of the result before slices at its ends are cut off.
        frames: 1 of a 3D scan.
        psf, psf_from, psf_certain: point spread along the stored axes, who says so, and whether that is certain.
        order: of the stored axes, as the network sees them (slices last).
    """

    source: Grid
    target: Grid
    frames: int
    psf: PSF
    psf_from: str
    psf_certain: bool
    order: tuple[int, int, int]

    @classmethod
    def of(cls, volume: Volume, target: Grid, psf: Any) -> Geometry:
        """psf: the argument of `mrisr.upscale`. UsageError where it is none."""
        assumption = psf_of(volume, psf)
        frames = volume.data.shape[3] if volume.data.ndim == 4 else 1
        return cls(volume.grid, target, frames, *assumption, canonical_order(assumption[0], target.voxel_size))


def psf_of(volume: Volume, psf: Any) -> tuple[PSF, str, bool]:
    """(point spread of the stored axes, the origin in words, certain) of a scan by the argument of `mrisr.upscale`.

    For "auto" the spectrum of the first frame is looked at, the one thing that planning takes from voxels. UsageError
    where `psf` is none.
    """
    size, spectrum, profiles = volume.grid.voxel_size, None, [None, None, None]
    if isinstance(psf, str) and psf == "auto":
        first = next(volume.frames())
        if "AcquiredVoxelSize" not in volume.meta:
            spectrum = [axis.width for axis in estimate_acquired(first, size)]
        for axis in np.flatnonzero(thick_slices(size, volume.meta, spectrum)):
            profiles[axis] = slice_profile(first, size, int(axis))
    return parse_psf(psf, size, volume.meta, spectrum, profiles)


@dataclass(frozen=True)
class ModelFacts:
    """What planning and the account know of a model.

    Attributes:
        few_steps: numbers of steps that it was distilled to.
        trained_range: "isotropic" or "slice" -> (least, most) acquired width / target voxel.
        learnt: of "gradnl" and "bias", what it has learnt to be told of.
        denoises: it has learnt to take noise out of the measured band.
        samples: it has learnt mode "sample".
        std_scale: (samples, steps) -> the conformal factors of the spread.
        log_sigma, mean_scale: of mode "mean" (`mrisr.diffusion.precond.mean_constants`).
        overlap: voxels that its tiles share (`mrisr.infer.tiles.shared`).
        network: which one of the name (`mrisr.weights.registry`).
    """

    name: str
    sha256: str
    card: str | None
    sigma_data: float
    norm: str
    attention: bool
    width: int
    weight_bytes: int
    few_steps: tuple[int, ...]
    trained_range: dict[str, tuple[float, float]]
    learnt: tuple[str, ...]
    denoises: bool
    samples: bool
    std_scale: dict[tuple[int, int], dict[float, float]]
    log_sigma: float
    mean_scale: float
    overlap: int
    network: str

    @classmethod
    def of(cls, model: Any) -> ModelFacts:
        """model: a `mrisr.weights.registry.LoadedModel`, or a `mrisr.infer.known.KnownModel`, which has them."""
        if hasattr(model, "facts"):
            return model.facts
        from mrisr.diffusion.precond import mean_constants

        log_sigma, mean_scale = mean_constants(model.denoiser.sigma_data)
        net, meta = model.denoiser.net, model.meta
        config = meta.get("config", {})
        families = config.get("families", ())
        return cls(
            name=model.name,
            sha256=model.sha256,
            card=None if model.card is None else str(model.card),
            sigma_data=model.denoiser.sigma_data,
            norm=net.config.norm,
            attention=bool(net.config.attention),
            width=net.config.widths[0],
            weight_bytes=4 * sum(p.numel() for p in net.parameters()),
            few_steps=tuple(meta.get("few_steps", ())),
            trained_range=trained_range(meta),
            learnt=learnt(meta),
            denoises=bool(meta.get("denoise", False)),
            samples=config.get("mean_fraction", 0.0) < 1,
            std_scale={
                (entry["samples"], entry["steps"]): {float(k): float(v) for k, v in entry["scale"].items()}
                for entry in meta.get("uncertainty", ())
            },
            log_sigma=log_sigma,
            mean_scale=mean_scale,
            overlap=tiles.FAR_OVERLAP if families and not net.config.attention else tiles.OVERLAP,
            network=model.network,
        )

    def check_learnt(self, options: Options, displaced: bool) -> None:
        """UsageError where samples are wanted, or noise is to go by the network alone, and it has not learnt that."""
        if options.mode == "sample" and not self.samples:
            raise UsageError(
                f'mode: {self.name} has learnt "mean" alone, and no samples; use other weights, such as base'
            )
        if options.denoise and not self.denoises and not options.filters(displaced):
            raise UsageError(
                f"denoise: {self.name} has not learnt to remove noise from what was measured, and in samples, or where "
                "geometry is corrected, no filter does; use denoise=0, or weights that have (their model card says so)"
            )

    @property
    def align(self) -> int:
        """What starts of tiles are multiples of."""
        return WINDOW_ALIGN if self.attention else tiles.BRICK


def trained_range(meta: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Of a header, by kind of axis; networks of one family of scanners have seen hardly anything of the other kind."""
    limits = {kind: tuple(pair) for kind, pair in meta.get("trained_range", {}).items()}
    families = set(meta.get("config", {}).get("families", ()))
    if families and limits:
        if not families - {"slice"}:
            limits["isotropic"] = IN_PLANE
        elif "slice" not in families:
            limits["slice"] = (1.0, 1.0)
    return limits


@dataclass(frozen=True)
class Machine:
    """What memory a job has: bytes of its budget, and of those what the process holds already (none on a GPU)."""

    budget: int
    resident_bytes: int

    @classmethod
    def of(cls, engine: Engine, budget: int | None) -> Machine:
        """Now; budget None: what is free. Ask when the engine has been made, which takes memory, and of no certain
        size."""
        if budget is None:
            budget = memory.default_budget(engine.device)
        return cls(budget, memory.resident() if engine.device.type == "cpu" else 0)
