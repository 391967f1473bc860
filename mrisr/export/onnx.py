"""A network as ONNX: its own operators become ONNX's, depth, height and width stay free, one graph per precision.

Half precision is written into the graph, as strongly typed engines want it: the inputs of every convolution and matrix
product are cast to half, their outputs back to float32; norms, softmax, SiLU, FiLM and the residual stream are float32,
and so are the graph's inputs and outputs. The weights of all precisions are the float32 ones in weights.safetensors,
to which the graphs refer (ONNX external data, by offset); engines fold the casts of constants when they load.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from mrisr import __version__
from mrisr.bundle import WEIGHTS_NAME
from mrisr.errors import BackendError, ModelError
from mrisr.export.describe import INPUTS, OUTPUTS
from mrisr.export.tensorrt import objections
from mrisr.nn.active import active_bricks
from mrisr.nn.condition import Condition
from mrisr.nn.unet import MULTIPLE
from mrisr.nn.vector import GUIDANCE_CHANNELS, GUIDANCE_STRIDE, SAMPLE, VECTOR_DIM
from mrisr.ops import onnx_translations
from mrisr.physics.psf import KINDS, AxisPSF

OPSET = 22  # the first whose convolutions take bfloat16; TensorRT 11 reads up to 25
IR_VERSION = 10  # what ONNX Runtime has read since 1.18
TRACE_SHAPE = (32, 40, 48)  # of the example volume; all different, so that no axis is taken for another
# Gemm works on the conditioning vector alone: nothing to gain. TensorRT for RTX 1.7 does not build a transposed
# convolution in bfloat16 ("could not infer output types"), and there are two of them.
IN_HALF = {"float16": ("Conv", "ConvTranspose", "MatMul"), "bfloat16": ("Conv", "MatMul")}


def requirements() -> None:
    """Raise BackendError where a package that exporting needs is absent."""
    for name in ("onnx", "onnxscript"):
        try:
            __import__(name)
        except ImportError as error:
            raise BackendError(f"export: needs {name} ({error}); install it: pip install '.[export]'") from error


class _Exported(torch.nn.Module):
    """The network in an engine's inputs. Each change between space and depth is one Reshape, Transpose, Reshape: half
    the time of the two transposes of a channels-last module, in ONNX Runtime and OpenVINO, and no operator of its own
    (ONNX's SpaceToDepth and DepthToSpace are for two dimensions)."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x, y, vector, guidance):
        active = active_bricks(y) if self.net.config.norm == "group" else None
        return _depth_to_space(self.net.body(_space_to_depth(torch.cat([x, y], dim=1)), vector, guidance, active))


def _space_to_depth(x: torch.Tensor) -> torch.Tensor:
    n, c, d, h, w = x.shape
    x = x.reshape(n, c, d // 2, 2, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(n, 8 * c, d // 2, h // 2, w // 2)


def _depth_to_space(x: torch.Tensor) -> torch.Tensor:
    n, c, d, h, w = x.shape
    x = x.reshape(n, c // 8, 2, 2, 2, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(n, c // 8, 2 * d, 2 * h, 2 * w)


def example(shape=TRACE_SHAPE, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Inputs of a size: random, of the magnitudes that the pipeline gives."""
    g = torch.Generator().manual_seed(seed)
    coarse = [n // GUIDANCE_STRIDE for n in shape]
    y = torch.rand(1, 1, *shape, generator=g)
    x = 0.1 * torch.randn(1, 1, *shape, generator=g)
    guidance = 0.1 * torch.randn(1, GUIDANCE_CHANNELS, *coarse, generator=g)
    return x, y, _example_vector(g), guidance


def _example_vector(g: torch.Generator) -> torch.Tensor:
    """What a network is told of a random scan, [1, VECTOR_DIM]: numbers that no scan gives would measure how rounding
    grows far from all that was learnt."""
    kind, width, noise, level = (torch.rand(n, generator=g).tolist() for n in (3, 3, 1, 1))
    psf = tuple(AxisPSF(KINDS[int(k * len(KINDS))], 1 + 3 * w) for k, w in zip(kind, width))
    stored = [p.width for p in psf]
    cond = Condition.of_acquisition(psf, (1.0, 1.0, 1.0), 0.04 * noise[0], stored=stored, mode=SAMPLE)
    return cond.vector(torch.tensor([math.exp(6 * level[0] - 3)]), 1.0)


def graph_of(net: torch.nn.Module):
    """The network as an `onnx.ModelProto` in float32, weights inside, named like the network's parameters.

    Raises:
        BackendError: onnx or onnxscript is absent, or the network has what cannot be exported.
    """
    requirements()
    d, h, w = (torch.export.Dim(name, min=1, max=512) for name in ("d", "h", "w"))
    free = {2: MULTIPLE * d, 3: MULTIPLE * h, 4: MULTIPLE * w}
    with torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                _Exported(net).eval(),
                example(),
                dynamo=True,
                opset_version=OPSET,
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamic_shapes=(free, free, {}, {2: d, 3: h, 4: w}),
                custom_translation_table=onnx_translations(),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            first = str(error).strip().splitlines()[0]
            raise BackendError(f"export: {type(net).__name__} cannot become ONNX ({first})") from error
    return _tidied(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that nobody asked for."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _tidied(model):
    """Parameters by their own names, free sizes by the names of the bundle's page, nothing of this machine."""
    from onnx import TensorProto, shape_inference

    graph = model.graph
    _rename(graph, {i.name: i.name.removeprefix("net.") for i in graph.initializer})
    for port, sizes in zip((*graph.input, *graph.output), (*_PORTS, _PORTS[0])):
        for axis, size in zip(port.type.tensor_type.shape.dim, sizes):
            axis.Clear()
            if isinstance(size, str):
                axis.dim_param = size
            else:
                axis.dim_value = size
    del graph.value_info[:]
    del model.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        for attribute in node.attribute if node.op_type == "Cast" else ():
            if attribute.i == TensorProto.UINT8:  # a mask; TensorRT has no uint8 between layers
                attribute.i = TensorProto.INT32
    graph.name, graph.doc_string = "mrisr", ""
    model.producer_name, model.producer_version, model.ir_version = "mrisr", __version__, IR_VERSION
    return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


_PLAIN = (1, 1, "D", "H", "W")
_PORTS = (_PLAIN, _PLAIN, (1, VECTOR_DIM), (1, GUIDANCE_CHANNELS, "D/8", "H/8", "W/8"))


def _rename(graph, names: dict[str, str]) -> None:
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]


def in_precision(model, precision: str):
    """The float32 graph in another precision: casts around every convolution and matrix product."""
    import onnx
    from onnx import TensorProto, helper

    if precision == "float32":
        return model
    code = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[precision]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes, cast = [], set()

    def halved(name: str) -> str:
        half = f"{name}.{precision}"
        if half not in cast:
            cast.add(half)
            nodes.append(helper.make_node("Cast", [name], [half], name=f"cast.{half}", to=code))
        return half

    for node in model.graph.node:
        if node.op_type not in IN_HALF[precision]:
            nodes.append(node)
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [halved(name) for name in node.input]
        (out,) = node.output
        copy.output[:] = [f"{out}.raw"]
        back = helper.make_node("Cast", [f"{out}.raw"], [out], name=f"cast.{out}", to=TensorProto.FLOAT)
        nodes += [copy, back]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    del result.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)


def emulated(model):
    """A half-precision graph for runtimes that lack half arithmetic: values are rounded wherever the graph rounds them,
    products and sums are float32 (as tensor cores accumulate). For comparisons only."""
    import onnx
    from onnx import TensorProto, helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = []
    for node in model.graph.node:
        to = next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
        if to in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            (name,) = node.output
            nodes.append(helper.make_node("Cast", node.input, [f"{name}.rounded"], to=to))
            nodes.append(helper.make_node("Cast", [f"{name}.rounded"], [name], to=TensorProto.FLOAT))
            continue
        nodes.append(node)
        code = _half_of(model, node) if node.op_type in IN_HALF["float16"] else None
        if code is not None:
            name = node.output[0]
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.output[:] = [f"{name}.exact"]
            nodes[-1:] = [copy, helper.make_node("Cast", [f"{name}.exact"], [f"{name}.rounded"], to=code)]
            nodes.append(helper.make_node("Cast", [f"{name}.rounded"], [name], to=TensorProto.FLOAT))
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    del result.graph.value_info[:]
    return result


def _half_of(model, node) -> int | None:
    """The half type that a node works in, or None where that is float32."""
    before = next((n for n in model.graph.node if n.output[0] == node.input[0] and n.op_type == "Cast"), None)
    return next((a.i for a in before.attribute if a.name == "to" and a.i != 1), None) if before else None


def refer_to_weights(model, weights: Path):
    """The graph with every parameter that `weights` holds, bit for bit, as a reference into that file. What the
    exporter has changed (transposed matrices, a gain taken out of its stack) stays inside.

    Args:
        weights: a safetensors file that will lie beside the graph under the same name.
    """
    import onnx

    places = _places(weights)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    with open(weights, "rb") as f:
        for tensor in result.graph.initializer:
            start, stop, shape = places.get(tensor.name, (0, 0, None))
            if list(tensor.dims) != shape or tensor.data_type != onnx.TensorProto.FLOAT:
                continue
            f.seek(start)
            if f.read(stop - start) != onnx.numpy_helper.to_array(tensor).astype("<f4").tobytes():
                continue
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", weights.name), ("offset", start), ("length", stop - start)):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, str(value)
    return result


def _places(weights: Path) -> dict[str, tuple[int, int, list[int]]]:
    """name -> (first byte in the file, one after the last, shape) of the float32 tensors of a safetensors file."""
    with open(weights, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length))
    return {
        name: (8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1], entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] == "F32"
    }


def save(model, path: Path) -> None:
    """Write a graph beside its weights, and check what was written: `onnx.checker`, strict shape inference, and the
    operators and ranks that TensorRT takes."""
    import onnx

    if not (path.parent / WEIGHTS_NAME).is_file():
        raise ModelError(f"{path.parent}: has no {WEIGHTS_NAME} for the graph to refer to")
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)
    reasons = objections(onnx.load(path, load_external_data=False))
    if reasons:
        raise BackendError(f"export: the graph has what TensorRT does not take: {'; '.join(reasons)}")


def deviation(answer: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a share of the largest expected value."""
    return float(np.abs(answer - expected).max() / np.abs(expected).max())
