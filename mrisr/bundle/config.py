"""config.json of a bundle as a type: every field, its limits and where it comes from. The page of the format is
`mrisr.bundle`; csrc/runtime/bundle.cpp reads the same in C++, and refuses the same."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from mrisr.schema import text

FORMAT, VERSION = "mrisr-bundle", 2
PRECISIONS = ("float32", "float16", "bfloat16")
GRAPHS = ("onnx", "openvino", "tensorrt")

Word = text(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", "a word of letters, digits and ._+-")
FileName = text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "a plain file name")
Line = text(r"[^\x00-\x1f\x7f]{0,400}", "one line of text")
Sha256 = text(r"[0-9a-f]{64}", "64 hexadecimal digits")
Percent = Annotated[float, Meta(ge=0, le=100)]
Share = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=1e3)]
Count = Annotated[int, Meta(ge=1, le=10**9)]
Few = Annotated[int, Meta(ge=1, le=64)]
Steps = Annotated[int, Meta(ge=1, le=1000)]
Place = Annotated[int, Meta(ge=0, le=63)]
Span = Annotated[list[Place], Meta(min_length=2, max_length=2)]  # (first place, number of places)
Range = Annotated[list[Positive], Meta(min_length=2, max_length=2)]
Size = Annotated[
    Literal[(*range(1, 65), "D", "H", "W", "D/8", "H/8", "W/8")],
    Meta(description="a size from 1 to 64, or D, H or W, or D/8, H/8 or W/8"),
]  # of an axis: fixed, or the depth, height or width, or an eighth of it


class Exact(Struct, forbid_unknown_fields=True, frozen=True):
    """An object with exactly these fields."""


class File(Exact):
    bytes: Annotated[int, Meta(ge=1, le=1 << 33)]
    sha256: Sha256


class Graph(Exact):
    file: FileName
    format: Literal[GRAPHS]
    precision: Literal[PRECISIONS]


class Port(Exact):
    name: Word
    shape: Annotated[list[Size], Meta(min_length=1, max_length=5)]


class Network(Exact):
    inputs: Annotated[list[Port], Meta(min_length=4, max_length=4)]
    outputs: Annotated[list[Port], Meta(min_length=1, max_length=1)]
    multiple: Few  # of D, H and W
    # channels at 1/2, 1/4 and 1/8 resolution
    widths: Annotated[list[Annotated[int, Meta(ge=8, le=4096)]], Meta(min_length=3, max_length=3)]
    norm: Literal["channel", "group"]  # "group" sees the whole volume: no tiles
    # tokens at 1/8 resolution, counted from the origin; 0: no attention
    attention_window: Annotated[int, Meta(ge=0, le=64)]


class Layout(Exact):
    log_sigma: Span
    mode: Span
    width: Span
    width_known: Span
    profile: Span
    noise: Span
    noise_known: Span
    step_share: Span
    spacing: Span
    apodisation: Span
    apodisation_known: Span
    denoise: Span


class Vector(Exact):
    length: Few
    layout: Layout
    log_sigma_unit: Positive
    noise_unit: Positive
    mode_mean: Annotated[int, Meta(ge=0, le=1)]
    mode_sample: Annotated[int, Meta(ge=0, le=1)]
    profiles: Annotated[list[Word], Meta(min_length=1, max_length=16)]
    width_decimals: Annotated[int, Meta(ge=0, le=9)]


class Guidance(Exact):
    channels: Few
    stride: Few
    layout: Annotated[list[Word], Meta(min_length=1, max_length=64)]


class Diffusion(Exact):
    sigma_data: Annotated[float, Meta(gt=0, le=10)]  # normalised intensities
    sigma_min: Positive
    sigma_max: Positive
    sampler: Literal["dpmpp_2m"]
    rho: Annotated[float, Meta(ge=1, le=100)]
    mode: Literal["mean", "sample"]  # of a caller who does not say
    steps: Steps
    few_steps: Annotated[list[Steps], Meta(max_length=16)]  # numbers of steps that the weights were distilled for
    denoise: bool  # they have learnt to take noise out of what was measured


class TrainedRange(Exact):
    """How much finer than acquired the training went, per kind of axis; null: not known."""

    isotropic: Range | None
    slice: Range | None


class Intensity(Exact):
    """(v - offset) / scale: mrisr/physics/intensity.py `intensity_scale`"""

    foreground: Share  # of the scale
    offset_percentile: Percent  # of all voxels; an offset above 0 is 0
    first_percentile: Percent  # of all voxels: the scale that the fixed point starts from
    scale_percentile: Percent  # of the foreground
    rounds: Steps
    settled: Annotated[float, Meta(ge=0, le=1)]  # relative change
    sample: Count  # voxels, where a volume has more
    bulk_percentile: Percent  # of the foreground, which outliers leave alone
    outlier: Annotated[float, Meta(ge=1, le=1e3)]  # times that: brighter voxels do not count, where the rest is tissue
    alike: Share  # correlation of tissue with itself ...
    lag: Few  # ... so many voxels away


class Noise(Exact):
    """mrisr/physics/intensity.py `estimate_noise`"""

    fewest_cells: Count
    sample: Count


class Start(Exact):
    """The start y: mrisr/physics/degrade.py `start_matrices`"""

    spline_order: Literal[1, 3, 5]  # across slices; Fourier elsewhere
    # from where an axis is taken for a slice axis, psf "auto"
    thick_slice_ratio: Annotated[float, Meta(ge=1, le=100)]


class Tiling(Exact):
    """Voxels of the target grid: mrisr/infer/tiles.py"""

    brick: Annotated[int, Meta(ge=1, le=256)]
    align: Annotated[int, Meta(ge=1, le=1024)]  # starts of tiles are multiples of it
    overlap: Annotated[int, Meta(ge=0, le=1024)]
    trim: Annotated[int, Meta(ge=0, le=512)]
    smallest: Annotated[int, Meta(ge=1, le=4096)]  # edge of a tile
    margin: Annotated[int, Meta(ge=0, le=1024)]
    fade: Annotated[int, Meta(ge=1, le=1024)]
    air: Share  # normalised intensity
    bright: Annotated[float, Meta(ge=1, le=1e3)]
    fewest_neighbours: Annotated[int, Meta(ge=0, le=26)]


class Fade(Exact):
    """Where the network's answer counts: mrisr/infer/fade.py, mrisr/physics/foreground.py"""

    spline_order: Literal[1, 3, 5]  # of what stands where it does not
    end_none: Annotated[float, Meta(ge=0, le=100)]  # slices, from the centre of an end slice inwards: nothing counts
    end_all: Annotated[float, Meta(gt=0, le=100)]  # and from where on everything does
    half: Share  # of background in a voxel that is background
    darkest: Share  # normalised intensity, means over 3^3 voxels: air, whatever its noise
    certain: Share  # tissue
    over_air: Annotated[float, Meta(ge=1, le=100)]  # times the level of air: tissue, where connected
    background_share: Share  # of the volume, at least, for a masked background
    background_solid: Share  # of that, inside of it
    least: Share  # of interpolation, above no signal: what the network's answer leaves
    most: Share  # of the scan's range, above its highest value: how far the answer goes


class GridDefault(Exact):
    """mrisr/grid.py"""

    voxel_size: Annotated[float, Meta(gt=0, le=100)]  # mm, of a caller who does not say
    same_spacing: Share  # relative difference that is rounding


class Consistency(Exact):
    """mrisr/physics/consistency.py, mrisr/physics/degrade.py"""

    mean_widths: Annotated[float, Meta(ge=1, le=100)]  # acquired widths, of the local mean that no residual changes

    noise_floor: Share
    smallest_eigenvalue: Share


class Config(Exact):
    format: Literal[FORMAT]
    format_version: Literal[VERSION]
    library_version: Word  # of the mrisr that wrote it
    notice: Line
    name: Word
    model_version: Annotated[int, Meta(ge=0, le=10**6)]
    preset: Word
    parameters: Count
    opset: Annotated[int, Meta(ge=18, le=25)]
    files: Annotated[dict[FileName, File], Meta(min_length=3, max_length=32)]
    # model.onnx in float32 is always the first
    graphs: Annotated[list[Graph], Meta(min_length=1, max_length=16)]
    network: Network
    vector: Vector
    guidance: Guidance
    diffusion: Diffusion
    trained_range: TrainedRange
    intensity: Intensity
    noise: Noise
    start: Start
    tiling: Tiling
    grid: GridDefault
    fade: Fade
    consistency: Consistency
