"""TensorRT: what it takes, plans built from a bundle's graphs, and the line that builds the same with trtexec.

Building and inspecting are apart: TensorRT for RTX builds without a GPU, while the list of layers and new weights need
a CUDA driver. Written against the Python API of TensorRT 10.13 to 11 and TensorRT for RTX 1.7 (same names); the package
is imported by the functions that need it only (`mrisr.infer.engines.tensorrt_package`).
"""

from __future__ import annotations

import json
import shlex
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from mrisr import __version__
from mrisr.errors import BackendError, UsageError
from mrisr.infer.engines import tensorrt_package
from mrisr.infer.engines.tensorrt_package import Package
from mrisr.io.atomic import replacing

# Operators that a network here may consist of, and the element types in which TensorRT 10.15 takes them: the table
# docs/operators.md of onnx-tensorrt for TensorRT 10.15 (opset 9 to 24; TensorRT 11 reads up to opset 25). Less uint8,
# which that table has, and which the parser of TensorRT for RTX 1.7 refuses between layers; and less transposed
# convolution in bfloat16, which its builder fails on.
SUPPORT_VERSION = "10.15"
_FLOAT, _INDEX, _BOOL = {"float", "float16", "bfloat16"}, {"int32", "int64"}, {"bool"}
OPERATORS = {
    "ConvTranspose": {"float", "float16"},
    **dict.fromkeys(
        ("AveragePool", "Conv", "Exp", "Gemm", "InstanceNormalization", "MatMul", "MaxPool",
         "Reciprocal", "Resize", "Sigmoid", "Softmax", "Sqrt"),
        _FLOAT,
    ),
    **dict.fromkeys(
        ("Add", "Div", "Max", "Mul", "Pad", "Pow", "ReduceMean", "ReduceSum", "Sub"),
        _FLOAT | _INDEX,
    ),
    **dict.fromkeys(("Equal", "Greater", "Less"), _FLOAT | _INDEX | _BOOL),
    **dict.fromkeys(
        ("Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Identity", "Reshape",
         "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
        _FLOAT | _INDEX | _BOOL,
    ),
    **dict.fromkeys(("And", "Not", "Or"), _BOOL),
}  # fmt: skip
MOST_AXES = 8  # nvinfer1::Dims::MAX_DIMS
POOLS = ("AveragePool", "MaxPool")  # two or three spatial axes
NEEDS_CONSTANT_AXES = ("ReduceMean", "ReduceSum", "Unsqueeze", "Squeeze")


def objections(model) -> list[str]:
    """Why TensorRT would not take an `onnx.ModelProto` (types and shapes inferred); empty where it should."""
    from onnx import TensorProto

    graph = model.graph
    reasons = [f"operators of domain {o.domain!r}" for o in model.opset_import if o.domain not in ("", "ai.onnx")]
    constants = {i.name for i in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}
    kinds, ranks = {}, {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        kinds[value.name] = TensorProto.DataType.Name(kind.elem_type).lower()
        ranks[value.name] = len(kind.shape.dim) if kind.HasField("shape") else None
    for tensor in graph.initializer:
        kinds[tensor.name] = TensorProto.DataType.Name(tensor.data_type).lower()
        ranks[tensor.name] = len(tensor.dims)
    for node in graph.node:
        where = f"{node.op_type} {node.output[0]}"
        if node.domain or node.op_type not in OPERATORS:
            reasons.append(f"{where}: operator not on the list for TensorRT {SUPPORT_VERSION}")
            continue
        for name in filter(None, (*node.input, *node.output)):
            if kinds.get(name) not in OPERATORS[node.op_type]:
                reasons.append(f"{where}: {name} is {kinds.get(name, 'of unknown type')}")
            if ranks.get(name) is None:
                reasons.append(f"{where}: {name} has no known rank")
            elif ranks[name] > MOST_AXES:
                reasons.append(f"{where}: {name} has {ranks[name]} axes, more than {MOST_AXES}")
        if node.op_type in POOLS and ranks.get(node.input[0]) not in (4, 5):
            reasons.append(f"{where}: pooling in other than two or three dimensions")
        if node.op_type in NEEDS_CONSTANT_AXES and len(node.input) > 1 and node.input[1] not in constants:
            reasons.append(f"{where}: its axes are not constant")
    return reasons


PLAN_NAME, NOTES_NAME, LOG_NAME, LAYERS_NAME = (
    "model.plan",
    "model.plan.json",
    "model.plan.log",
    "model.plan.layers.json",
)
MULTIPLE = 8
LARGEST_SIDE = 1024


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is built for.

    Attributes:
        tile: depth, height, width of the volume that it is fastest for; the only one, unless `smallest` or `largest`.
        smallest, largest: further sizes, each axis by itself; a side not given is that of `tile`.
        refit: new weights can be put into the plan later (`refit`).
        portable: the plan runs on GPUs from Ampere on, and with TensorRT on its later minor versions, at some cost in
            speed. TensorRT for RTX: on every GPU from Ampere on that it knows.
        timing_cache: a file of measured tactics, read where it exists and written after the build. TensorRT for RTX
            measures nothing while it builds; its file holds nothing of use.
    """

    tile: tuple[int, int, int] = (128, 128, 128)
    smallest: tuple[int, int, int] | None = None
    largest: tuple[int, int, int] | None = None
    refit: bool = False
    portable: bool = False
    timing_cache: str | None = None

    def __post_init__(self) -> None:
        low, tile, high = self.sizes()
        for name, size in (("smallest", low), ("tile", tile), ("largest", high)):
            if len(size) != 3 or any(n % MULTIPLE or not MULTIPLE <= n <= LARGEST_SIDE for n in size):
                raise UsageError(
                    f"{name}: expected three multiples of {MULTIPLE} up to {LARGEST_SIDE} voxels, found {list(size)}"
                )
        if any(not a <= b <= c for a, b, c in zip(low, tile, high)):
            raise UsageError(f"plan: expected smallest <= tile <= largest on every axis, found {low}, {tile}, {high}")

    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        """(smallest, tile, largest)."""
        return tuple(tuple(size) for size in (self.smallest or self.tile, self.tile, self.largest or self.tile))


def requirements(options: PlanOptions) -> Package:
    """The package that builds. BackendError where it is absent, or needs a driver and there is none."""
    reason = tensorrt_package.missing()
    if reason:
        raise BackendError(f"tensorrt: {reason}. Without it, export with --format onnx and build the plan with trtexec")
    package, driver = tensorrt_package.load(), tensorrt_package.no_driver()
    if driver and package.flavour == "tensorrt":
        raise BackendError(
            f"tensorrt: {package} builds a plan on the GPU that runs it, and {driver}; TensorRT for RTX builds without "
            "one (pip install '.[tensorrt-rtx]'), and trtexec builds from the ONNX graph elsewhere"
        )
    if driver and options.refit:
        raise BackendError(
            f"tensorrt: {package} needs a CUDA driver to build a plan that takes new weights, and {driver}; leave out "
            "--refit, or export on the machine with the GPU"
        )
    return package


def shapes(inputs: list[dict], size: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """name -> shape of every input (`network.inputs` of a bundle's configuration) for a volume of `size`."""
    sizes = {letter: n for letter, n in zip("DHW", size)}
    sizes |= {f"{letter}/8": n // 8 for letter, n in sizes.items()}
    return {port["name"]: tuple(sizes.get(axis, axis) for axis in port["shape"]) for port in inputs}


def trtexec(config: dict, precision: str, options: PlanOptions) -> str:
    """The command that builds the same plan, to be run in the bundle's folder."""
    graph = next(g["file"] for g in config["graphs"] if (g["format"], g["precision"]) == ("onnx", precision))
    inputs = config["network"]["inputs"]
    words = ["trtexec", f"--onnx={graph}", f"--saveEngine={PLAN_NAME}", "--stronglyTyped", "--noTF32"]
    for flag, size in zip(("min", "opt", "max"), options.sizes()):
        parts = (f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes(inputs, size).items())
        words.append(f"--{flag}Shapes={','.join(parts)}")
    words += ["--profilingVerbosity=detailed", f"--exportLayerInfo={LAYERS_NAME}"]
    if options.refit:
        words.append("--refit")
    if options.portable:
        words += ["--versionCompatible", "--hardwareCompatibilityLevel=ampere+"]
    if options.timing_cache:
        words.append(f"--timingCacheFile={options.timing_cache}")
    return shlex.join(words)


def write_plan(folder: Path, graph: str, precision: str, inputs: list[dict], options: PlanOptions, say) -> dict:
    """Build model.plan from a graph of the folder, with its notes and build log beside, and its list of layers where
    there is a CUDA driver to make it; its `graphs` entry.

    Raises:
        BackendError: no package, no device where it needs one, or a graph that TensorRT does not build; with the last
            lines of its log.
    """
    package = requirements(options)
    log = _logger(package.api)
    try:
        plan = _build(package, log, folder / graph, inputs, options)
    except RuntimeError as error:  # how its bindings report trouble with the driver
        raise BackendError(f"tensorrt: {str(error).splitlines()[0]}; {log.last()}") from error
    (folder / PLAN_NAME).write_bytes(plan)
    (folder / LOG_NAME).write_text("\n".join(log.lines) + "\n", encoding="utf-8")
    low, tile, high = options.sizes()
    notes = {
        "library_version": __version__,
        "flavour": package.flavour,
        "tensorrt": package.version,
        "graph": graph,
        "precision": precision,
        "portable": options.portable,
        "options": asdict(options) | {"smallest": low, "tile": tile, "largest": high},
    }
    (folder / NOTES_NAME).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
    say(f"{PLAN_NAME}: {len(plan) / 1e6:.1f} MB for {package}, {precision}")
    if options.timing_cache and package.flavour == "tensorrt-rtx":
        say(f"{options.timing_cache}: {package} measures nothing while it builds, so the file makes no build faster")
    reason = tensorrt_package.no_driver()
    if reason:
        say(f"{LAYERS_NAME}: not written, because {reason}; the plan itself is whole")
    else:
        (folder / LAYERS_NAME).write_text(_layers(package.api, log, plan), encoding="utf-8")
    return {"file": PLAN_NAME, "format": "tensorrt", "precision": precision}


def _build(package: Package, log, path: Path, inputs: list[dict], options: PlanOptions) -> bytes:
    trt = package.api
    builder = trt.Builder(log)
    # The only kind of network in TensorRT 11 and TensorRT for RTX, which take the flag all the same.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):  # by its path, so that it finds the weights beside it
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BackendError(f"tensorrt: {path.name} was not understood: {errors or log.last()}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # "float32" here means float32
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.portable:
        _for_other_gpus(package, config)
    profile = builder.create_optimization_profile()
    low, tile, high = (shapes(inputs, size) for size in options.sizes())
    for name in low:
        profile.set_shape(name, low[name], tile[name], high[name])
    config.add_optimization_profile(profile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TensorRT for RTX: of everything about timing caches
        plan = _timed(builder, network, config, Path(options.timing_cache) if options.timing_cache else None)
    if plan is None:
        raise BackendError(f"tensorrt: {path.name} was not built; {log.last()}")
    return bytes(plan)


def _for_other_gpus(package: Package, config) -> None:
    trt = package.api
    if package.flavour == "tensorrt":
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return
    members = trt.ComputeCapability.__members__
    architectures = [members[name] for name in members if name.startswith("SM") and int(name[2:]) >= 80]
    config.num_compute_capabilities = len(architectures)
    for i, capability in enumerate(architectures):
        config.set_compute_capability(capability, i)


def _timed(builder, network, config, cache: Path | None):
    """The plan, or None; with the timings of a cache, which is written again, where there is one."""
    if cache is None:
        return builder.build_serialized_network(network, config)
    timing = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    config.set_timing_cache(timing, False)
    plan = builder.build_serialized_network(network, config)
    if plan is not None:
        with replacing(cache, force=True) as beside:
            beside.write_bytes(bytes(config.get_timing_cache().serialize()))
    return plan


def refit(folder: Path, graph: str) -> None:
    """Put the weights of `graph` into the folder's plan, which was built with `refit`.

    Raises:
        BackendError: the plan takes no new weights, or these do not fit.
    """
    trt = tensorrt_package.load(folder / PLAN_NAME).api
    reason = tensorrt_package.no_driver()
    if reason:
        raise BackendError(f"{PLAN_NAME}: new weights are put in on a machine with a CUDA driver, and {reason}")
    log = _logger(trt)
    engine = _engine(trt, log, (folder / PLAN_NAME).read_bytes())
    if not engine.refittable:
        raise BackendError(f"{PLAN_NAME}: takes no new weights; build it with --refit")
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(str(folder / graph)) or not refitter.refit_cuda_engine():
        raise BackendError(f"{PLAN_NAME}: the weights of {graph} do not fit; {log.last()}")
    (folder / PLAN_NAME).write_bytes(bytes(engine.serialize()))


def _layers(trt, log, plan: bytes) -> str:
    inspector = _engine(trt, log, plan).create_engine_inspector()
    return inspector.get_engine_information(trt.LayerInformationFormat.JSON)


def _engine(trt, log, plan: bytes):
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = True  # a portable plan brings its own runtime
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"tensorrt: the plan cannot be loaded; {log.last()}")
    return engine


def _logger(trt):
    class Log(trt.ILogger):
        """Keeps what TensorRT says: the build log, and the reason where something fails."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity, text) -> None:
            self.lines.append(f"{getattr(severity, 'name', severity)}: {text}")

        def last(self) -> str:
            errors = [line for line in self.lines if line.startswith(("ERROR", "INTERNAL_ERROR"))]
            return " | ".join(errors[-3:]) or "it gave no reason"

    return Log()
