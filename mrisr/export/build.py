"""A model in, a bundle out: written beside and checked against PyTorch before it takes its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mrisr import bundle, third_party
from mrisr.errors import BackendError, UsageError
from mrisr.export import onnx as graphs
from mrisr.export import tensorrt
from mrisr.export.describe import INPUTS, config_of, network_of
from mrisr.io.atomic import replacing_folder

# Largest difference from PyTorch in float32, as a share of the largest value. With its 8 bits of mantissa, bfloat16
# would need the finest level in float32 to stay below 5e-3, and that is most of the work.
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
CHECKED_SHAPES = ((16, 8, 24), (32, 40, 48), (64, 48, 72))


@third_party.nothing_compiled()
def export_bundle(
    model,
    folder: str | os.PathLike,
    *,
    form: str = "onnx",
    precisions: Sequence[str] = ("float32",),
    force: bool = False,
    plan=None,
    say: Callable[[str], None] = lambda line: None,
) -> bundle.Bundle:
    """Write a bundle of `model` into `folder`.

    Args:
        model: a `mrisr.weights.registry.LoadedModel`; its network is one of the presets.
        form: "onnx" (model.onnx), "openvino" (also model.xml and model.bin) or "tensorrt" (also model.plan).
        precisions: of the ONNX graphs; "float32" is always among them. A plan is built of the last one.
        force: replace a bundle that is there.
        plan: a `mrisr.export.tensorrt.PlanOptions`; None: its defaults.
        say: told of each step, one line each.

    Raises:
        UsageError, OutputError: arguments; the folder. BackendError: a package is absent, or a graph does not give what
        PyTorch gives.
    """
    names = _precisions(form, precisions)
    if "preset" not in model.meta:
        raise UsageError(
            f"export: {model.name} does not say which preset it is; export weights that `mrisr train` wrote"
        )
    if model.denoiser.net.config.global_attention:
        raise UsageError(
            f"export: {model.name} attends to the whole volume, which a graph on tiles cannot; export a network with "
            "attention in windows, or with none"
        )
    graphs.requirements()
    if form == "tensorrt":
        plan = plan or tensorrt.PlanOptions()
        tensorrt.requirements(plan)
    with replacing_folder(folder, force=force, sign=bundle.CONFIG_NAME) as beside:
        _write_weights(model, beside / bundle.WEIGHTS_NAME)
        _write_card(model, beside / bundle.CARD_NAME)
        entries = _write_graphs(model, beside, names, say)
        if form == "openvino":
            entries.append(_write_ir(beside))
            _check(model.denoiser.net, beside, entries[-1], say)
        elif form == "tensorrt":
            inputs = network_of(model.denoiser.net.config)["inputs"]
            graph = next(e["file"] for e in entries if e["precision"] == names[-1])
            entries.append(tensorrt.write_plan(beside, graph, names[-1], inputs, plan, say))
        bundle.write_config(beside, config_of(model, graphs.OPSET, entries[1:]))
        bundle.read(beside)
    return bundle.Bundle(Path(folder), bundle.read_config(Path(folder)))


def _precisions(form: str, precisions: Sequence[str]) -> list[str]:
    if form not in bundle.GRAPHS:
        raise UsageError(f"export: format must be one of {', '.join(bundle.GRAPHS)}, found {form!r}")
    for name in precisions:
        if name not in bundle.PRECISIONS:
            raise UsageError(f"export: precision must be one of {', '.join(bundle.PRECISIONS)}, found {name!r}")
    return list(dict.fromkeys(("float32", *precisions)))


def _write_weights(model, path: Path) -> None:
    from safetensors.torch import save

    meta = {key: value for key, value in model.meta.items() if key != "stored"}  # here all is float32
    tensors = {k: v.detach().float().contiguous().cpu() for k, v in model.denoiser.net.state_dict().items()}
    path.write_bytes(save(tensors, metadata={"mrisr": json.dumps(meta)}))


def _write_card(model, path: Path) -> None:
    text = (
        f"# {model.meta['preset']}\n\nNo model card came with these weights. Research software, not a medical device.\n"
    )
    path.write_bytes(text.encode() if model.card is None else Path(model.card).read_bytes())


def _write_graphs(model, folder: Path, names: list[str], say) -> list[dict]:
    plain = graphs.graph_of(model.denoiser.net)
    entries = []
    for name in names:
        file = bundle.MODEL_NAME if name == "float32" else f"model.{name}.onnx"
        graph = graphs.refer_to_weights(graphs.in_precision(plain, name), folder / bundle.WEIGHTS_NAME)
        graphs.save(graph, folder / file)
        entries.append({"file": file, "format": "onnx", "precision": name})
        _check(model.denoiser.net, folder, entries[-1], say)
    return entries


def _write_ir(folder: Path) -> dict:
    ov = third_party.openvino()
    core = ov.Core()
    ov.save_model(core.read_model(folder / bundle.MODEL_NAME), folder / "model.xml", compress_to_fp16=False)
    return {"file": "model.xml", "format": "openvino", "precision": "float32"}


def _check(net: torch.nn.Module, folder: Path, entry: dict, say) -> None:
    """Run a graph in every runtime at hand and compare with PyTorch."""
    path, limit = folder / entry["file"], TOLERANCE[entry["precision"]]
    for name, run in runtimes(path, entry["precision"]).items():
        worst = 0.0
        for shape in CHECKED_SHAPES:
            inputs = graphs.example(shape, seed=1)
            with torch.inference_mode():
                expected = net(*inputs).numpy()
            answer = run(dict(zip(INPUTS, (t.numpy() for t in inputs))))
            worst = max(worst, graphs.deviation(answer, expected))
        say(f"{entry['file']} in {name}: differs from PyTorch by {worst:.1e} of the largest value (at most {limit:g})")
        if not worst <= limit:
            raise BackendError(
                f"export: {entry['file']} gives something else in {name} than PyTorch ({worst:.2g} of the largest "
                f"value, expected at most {limit:g}); nothing was written"
            )


def runtimes(path: Path, precision: str) -> dict[str, Callable]:
    """name -> run(inputs by name) -> f, of the runtimes that are installed and take the graph on a CPU."""
    ov = third_party.openvino()
    # f32: a CPU with bfloat16 may compute all in it otherwise.
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    table = {"OpenVINO": lambda feed: compiled(feed)[0]}
    if path.suffix == ".onnx" and precision != "bfloat16":  # ONNX Runtime has no bfloat16 convolution on a CPU
        try:
            onnxruntime = third_party.onnxruntime()
        except ImportError:
            return table
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        table["ONNX Runtime"] = lambda feed: session.run(None, feed)[0]
    return table
