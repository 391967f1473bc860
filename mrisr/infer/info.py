"""What `upscale(..., return_info=True)` tells about a run: enough to repeat it, and to know which part was
measured.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RESEARCH_USE = "Research software, not a medical device."


@dataclass(frozen=True)
class GridInfo:
    """A voxel grid: counts, voxel size in mm, and the affine (index -> mm, RAS+) as 4 rows."""

    shape: tuple[int, ...]
    voxel_size: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, grid) -> GridInfo:
        return cls(
            tuple(int(n) for n in grid.shape),
            tuple(float(v) for v in grid.voxel_size),
            tuple(tuple(float(v) for v in row) for row in np.asarray(grid.affine)),
        )


@dataclass(frozen=True)
class AxisResolution:
    """One stored axis: what was acquired, and which frequencies of the output (cycles per mm) stem from it.

    Below `measured_to` the scanner measured (attenuated, for a slice profile); from there to
    `synthesised_to`, the Nyquist limit of the output grid, the model supplied what the picture shows. Where
    both are equal nothing was synthesised along this axis.
    """

    profile: str
    acquired_mm: float
    stored_mm: float
    target_mm: float
    measured_to: float
    synthesised_to: float


@dataclass(frozen=True)
class EngineInfo:
    """What ran the network, and why it; precision: "float32", "bfloat16" or that of a TensorRT plan, and why that."""

    name: str
    device: str
    threads: int
    precision: str
    why: str
    precision_why: str = ""


@dataclass(frozen=True)
class TileInfo:
    """kind: "whole" (one piece), "exact" (one piece, layer by layer) or "tiles".

    computed: pieces that ran; the others of `count` held only air. active_fraction: network voxels computed / voxels
    of the output. spilled: bytes of maps that were kept in a file. seam_error: largest difference between
    neighbouring tiles where they share the weight equally, as a share of the output's range (p99.9 - p0.1); the seam
    that is left in the blend is at most half of it. `seam` says in words what bounds the tiling error.
    """

    kind: str
    size: tuple[int, int, int]
    count: int
    computed: int
    active_fraction: float
    box: tuple[tuple[int, ...], tuple[int, ...]]
    seam: str
    spilled: int = 0
    seam_error: float | None = None


@dataclass(frozen=True)
class ConsistencyInfo:
    """chi2: mean squared difference between the input and the scan that the output would have given, over the
    noise variance (1 = explained to within the noise), before air and the end slices fade to interpolation. after
    equals before where nothing was applied."""

    applied: bool
    why: str
    chi2_before: float | None = None
    chi2_after: float | None = None
    noise_sigma: float | None = None


@dataclass(frozen=True)
class GradnlInfo:
    """Gradient nonlinearity.

    state: "given" or "absent" (it cannot be estimated). source: where it is from. done, why: what the scanner had
    corrected already ("none", "2D" or "3D": nothing was left to do), and who says so. largest_mm: how far a voxel of
    the output lies from where the scan shows it, at most. det: lowest and highest factor on the intensity. guidance:
    whether the network was told of it ("told" in JSON, as accounts have had it from the first).
    """

    state: str
    source: str = ""
    done: str = "none"
    why: str = ""
    largest_mm: float = 0.0
    det: tuple[float, float] = (1.0, 1.0)
    guidance: str = field(default="", metadata={"json": "told"})


@dataclass(frozen=True)
class BiasInfo:
    """Bias field.

    state: "given", "estimated" or "absent". source: where it is from. span: its lowest and highest value. output:
    "corrected", or "kept" where the output is multiplied by the field again. guidance: whether the network was told of
    it ("told" in JSON).
    """

    state: str
    source: str = ""
    span: tuple[float, float] = (1.0, 1.0)
    output: str = "corrected"
    guidance: str = field(default="", metadata={"json": "told"})


@dataclass(frozen=True)
class StackInfo:
    """One of several scans that were joined.

    transform: 4 rows, mm to mm: where this stack shows what the reference shows at a point; registered: whether it was
    looked for. correlation, overlap: with the reference, within the head. gain: what its voxels were multiplied by to
    be as bright as the reference's (least squares, within the head that both show). noise_sigma: as a part of the
    reference's intensity scale; weight: 1 / variance, of all stacks together 1. chi2_before, chi2_after: of the mean of
    all interpolations, and of the result, as `ConsistencyInfo` has them.
    """

    name: str
    grid: GridInfo
    point_spread: str
    transform: tuple[tuple[float, ...], ...]
    registered: bool
    correlation: float
    overlap: float
    gain: float
    noise_sigma: float
    weight: float
    chi2_before: float
    chi2_after: float


@dataclass(frozen=True)
class AdaptInfo:
    """What a network has learnt from the scan before it answered (`adapt`).

    used: whether the result is of the adapted weights; False: the planes that were held back gained nothing, and it is
    what the weights before, sha256 `base`, answer. limit: seconds that were given; seconds: that learning took. steps:
    that were taken of `planned`; in_time: False where the seconds ran out, so that the result depends on the clock.
    loss: mean over the first and the last tenth of the steps, in units of the residual's variance. gain_db: PSNR that
    the held-back planes have gained. weights: sha256 of the adapted weights as a file, "" where they are not used.
    slices_mm, voxel_mm: slices that were made to learn from, and the voxels they were made of. device, precision: of
    learning.
    """

    used: bool
    limit: float
    seconds: float
    steps: int
    planned: int
    in_time: bool
    loss: tuple[float, float] | None
    gain_db: float
    base: str
    weights: str
    seed: int
    slices_mm: float
    voxel_mm: float
    device: str
    precision: str


@dataclass
class Info:
    """Everything about one run.

    `tiles` is of the frame that took most voxels, with the largest seam error and the largest file of any frame;
    `frame_tiles` has one for every frame, where they are not all the same.

    `stacks`: what became of each of several scans that were joined; empty of one. `adapt`: what the network has learnt
    from the scan itself; None where that was not asked for.

    `network`: which network of the model ran: "general", or that for slices ("2d") or for cuts of k-space ("3d").

    `denoise`: 0 (the measured band holds what was measured, noise included) to 1 (its noise is taken out, as far as the
    network's answer, or of a network that has not learnt it the scan, tells it from signal).

    `back_projection`: how much of what the scan holds beyond the network's answer went back onto it: of slices 1 where
    their profile was stated, 0.5 where it was assumed; 1 where the answer says what is noise (`denoise`); else 0.

    `std` (samples > 1): the voxel-wise standard deviation as a Volume on the target grid, in input intensity units,
    just as the samples have it; it is left out of `to_json`. `std_scale` says what it is worth: {level: factor}, such
    that |truth - result| <= factor * std held in that share of the voxels of held-out heads (split conformal; the model
    card has the coverage on people it was not taken from). None where these weights were not calibrated for these
    samples and steps.
    """

    input: GridInfo
    target: GridInfo
    frames: int
    model: str
    weights: str
    card: str | None
    network: str
    engine: EngineInfo
    mode: str
    steps: int
    samples: int
    seed: int
    ensemble: int
    denoise: float
    resolution: tuple[AxisResolution, AxisResolution, AxisResolution]
    resolution_from: str
    tiles: TileInfo
    back_projection: float
    consistency: tuple[ConsistencyInfo, ...]
    intensity: tuple[tuple[float, float], ...]
    memory_budget: int
    memory_expected: int
    seconds: dict[str, float]
    gradnl: GradnlInfo = field(default_factory=lambda: GradnlInfo("absent"))
    bias: BiasInfo = field(default_factory=lambda: BiasInfo("absent"))
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    notice: str = RESEARCH_USE
    std_scale: dict[float, float] | None = None
    frame_tiles: tuple[TileInfo, ...] = ()
    stacks: tuple[StackInfo, ...] = ()
    adapt: AdaptInfo | None = None
    std: Any = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and texts (JSON-ready), without `std`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "std"}
        return {name: _plain(value) for name, value in fields.items()}

    def show(self, before: Any = None, after: Any = None, **place: Any) -> Any:
        """This account for a notebook or a console; with what went in and came out, also pictures of both.

        As `mrisr.report.show(info, before, after)`; the volumes themselves are not kept here.
        """
        from mrisr.report import notebook  # what an account looks like is no concern of the pipeline

        return notebook.show(self, before, after, **place)

    def to_json(self, indent: int | None = 2) -> str:
        """The run as strict JSON text (a number that is not finite becomes null)."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.metadata.get("json", f.name): _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def resolution(psf, source_mm: Sequence[float], target_mm: Sequence[float]) -> tuple[AxisResolution, ...]:
    """Per axis: the acquired width and the measured and synthesised bands.

    A cut of k-space measures up to 0.5 / width. A slice profile has no sharp end; the samples limit it to
    0.5 / spacing, and the profile to 0.5 / thickness: the lower of the two is stated.
    """
    axes = []
    for axis, stored, target in zip(psf, source_mm, target_mm):
        nyquist = 0.5 / target
        measured = min(0.5 / axis.width, 0.5 / stored, nyquist)
        axes.append(
            AxisResolution(axis.kind, float(axis.width), float(stored), float(target), float(measured), float(nyquist))
        )
    return tuple(axes)
