"""An exported bundle: its graphs are what they should be, Python upscales with it, and damage is told apart."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import mrisr
from mrisr import bundle, schema
from mrisr.errors import ModelError, OutputError, UsageError
from mrisr.weights import registry

onnx = pytest.importorskip("onnx", reason="exporting needs onnx (extra: export)")
from mrisr.export import onnx as graphs  # noqa: E402
from mrisr.export import tensorrt  # noqa: E402


def test_every_graph_was_compared_with_pytorch(exported):
    found = bundle.read(exported[0]).config
    assert [(g["format"], g["precision"]) for g in found["graphs"]] == [
        ("onnx", "float32"),
        ("onnx", "float16"),
        ("onnx", "bfloat16"),
        ("openvino", "float32"),
    ]
    said = "\n".join(exported[1])
    for graph in found["graphs"]:
        assert f"{graph['file']} in OpenVINO" in said
    assert sorted(found["files"]) == sorted(set(os.listdir(exported[0])) - {"config.json"})
    assert not [name for name in os.listdir(exported[0].parent) if name.startswith(".")]


@pytest.mark.parametrize("precision", bundle.PRECISIONS)
def test_graphs_are_plain_onnx_that_tensorrt_takes(exported, precision):
    path = bundle.read(exported[0]).graph("onnx", precision)
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
    assert tensorrt.objections(model) == [] and not model.functions
    assert [(o.domain, o.version) for o in model.opset_import] == [("", graphs.OPSET)] and graphs.OPSET <= 25
    sizes = [[a.dim_param or a.dim_value for a in i.type.tensor_type.shape.dim] for i in model.graph.input]
    assert sizes[0] == [1, 1, "D", "H", "W"] and sizes[3] == [1, 8, "D/8", "H/8", "W/8"]
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {1}


@pytest.mark.parametrize("precision", ("float16", "bfloat16"))
def test_only_products_are_in_half_precision(exported, precision):
    model = onnx.load(bundle.read(exported[0]).graph("onnx", precision), load_external_data=False)
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    kinds |= {i.name: i.data_type for i in model.graph.initializer}
    half = getattr(onnx.TensorProto, precision.upper())
    seen = set()
    for node in model.graph.node:
        used = {kinds[name] for name in (*node.input, *node.output) if name in kinds}
        if node.op_type in graphs.IN_HALF[precision]:
            assert used == {half}, node.name
        elif node.op_type != "Cast":
            assert half not in used, node.name
        seen.add(node.op_type)
    assert {"Conv", "ConvTranspose", "Cast"} <= seen


def test_all_precisions_share_one_copy_of_the_weights(exported):
    tensors = registry.load("base").denoiser.net.state_dict()
    for precision in bundle.PRECISIONS:
        path = bundle.read(exported[0]).graph("onnx", precision)
        model = onnx.load(path, load_external_data=False)
        shared = {i.name for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL}
        assert shared == set(tensors) and path.stat().st_size < 100_000
        where = {e.value for i in model.graph.initializer for e in i.external_data if e.key == "location"}
        assert where == {bundle.WEIGHTS_NAME}


def test_half_precision_as_a_tensor_core_would_have_it(exported):
    """Rounded wherever the graph rounds; the runtimes here may compute in float32 between."""
    runtime = pytest.importorskip("onnxruntime", reason="computes the graphs (extra: export)")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    net, given = registry.load("base").denoiser.net, graphs.example((32, 24, 40), seed=2)
    with torch.inference_mode():
        expected = net(*given).numpy()
    for precision, limit in (("float16", 5e-3), ("bfloat16", 3e-2)):
        model = graphs.emulated(onnx.load(bundle.read(exported[0]).graph("onnx", precision)))
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, dict(zip(graphs.INPUTS, (t.numpy() for t in given))))
        # Not equal to the float32 result either: the rounding is really there.
        assert limit / 30 < graphs.deviation(found, expected) <= limit


def test_python_upscales_with_a_bundle(exported, head):
    scan = head((24, 26, 22))
    model = mrisr.load_model(exported[0])
    assert model.card == exported[0] / "card.md" and model.name == str(exported[0])
    # Not the same file: older weights are widened as they are loaded, and stored as wide as the graph reads them.
    mine, theirs = (m.denoiser.net.state_dict() for m in (model, registry.load("base")))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    model = mrisr.load_model(exported[0])
    found = mrisr.upscale(scan, input_voxel_size=1.0, model=str(exported[0]), engine="torch", threads=1)
    expected = mrisr.upscale(scan, input_voxel_size=1.0, model=registry.locate("base"), engine="torch", threads=1)
    np.testing.assert_array_equal(found, expected)  # of its one network; by the name the scan chooses


def damage(folder, how):
    card, weights, config = (folder / n for n in ("card.md", "weights.safetensors", "config.json"))
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif how == "flipped":
        data = bytearray(weights.read_bytes())
        data[-9] ^= 1
        weights.write_bytes(data)
    elif how == "grown":
        card.write_text(card.read_text() + "more")
    elif how == "missing":
        (folder / "model.onnx").unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "link out":
        os.replace(card, folder.parent / "elsewhere.md")
        card.symlink_to(folder.parent / "elsewhere.md")
    elif how == "pipe":
        card.unlink()
        os.mkfifo(card)
    elif how == "folder":
        card.unlink()
        card.mkdir()
    elif how == "newer":
        config.write_text(config.read_text().replace('"format_version": 2', '"format_version": 3'))
    elif how == "huge":
        config.write_bytes(b" " * (schema.LARGEST + 1))
    elif how == "other sigma":
        config.write_text(config.read_text().replace('"sigma_data": 0.', '"sigma_data": 0.9'))
    elif how == "no config":
        config.unlink()


@pytest.mark.parametrize(
    "how,words",
    [
        ("truncated", "weights.safetensors: .* bytes, expected .*truncated"),
        ("flipped", "weights.safetensors: its SHA-256"),
        ("grown", "card.md: .*too large"),
        ("missing", "model.onnx: is missing"),
        ("no weights", "weights.safetensors: is missing"),
        ("link out", "card.md: is a link out of the bundle"),
        ("pipe", "card.md: is not a regular file"),
        ("folder", "card.md: is not a regular file"),
        ("newer", "format version 3, and this mrisr reads up to 2"),
        ("huge", "a configuration has at most"),
        ("other sigma", "diffusion.sigma_data"),
        ("no config", "config.json: is missing"),
    ],
)
def test_a_damaged_bundle_is_refused(copy, how, words):
    damage(copy, how)
    with pytest.raises(ModelError, match=words):
        mrisr.load_model(copy)


def test_one_file_of_a_bundle_is_not_the_bundle(copy):
    with pytest.raises(ModelError, match="model.onnx: is one file of a bundle; give the bundle's folder"):
        registry.load(copy / "model.onnx")


def test_a_link_inside_the_bundle_is_fine(copy):
    os.replace(copy / "card.md", copy / "text.md")
    (copy / "card.md").symlink_to("text.md")
    assert mrisr.load_model(copy).card == copy / "card.md"


def test_what_is_there_stays_unless_it_is_a_bundle(copy, tmp_path):
    from mrisr.export.build import export_bundle

    model = registry.load("base")
    with pytest.raises(OutputError, match="exists already"):
        export_bundle(model, copy)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="will not be deleted"):
        export_bundle(model, tmp_path / "home", force=True)
    with pytest.raises(OutputError, match="there is no directory"):
        export_bundle(model, tmp_path / "no" / "such")
    with pytest.raises(UsageError, match="precision must be one of"):
        export_bundle(model, tmp_path / "new", precisions=["int8"])
    assert sorted(os.listdir(tmp_path)) == ["copy", "home"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    from mrisr.export import build

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_write_graphs", fail)
    with pytest.raises(KeyboardInterrupt):
        build.export_bundle(registry.load("base"), tmp_path / "new")
    assert os.listdir(tmp_path) == []
