"""Exact tiling: the program over slabs is the network, whatever the slab, the memory or the file behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import mrisr
from mrisr.errors import BackendError, MemoryBudgetError, MrisrWarning
from mrisr.infer import memory
from mrisr.infer.engines import slabs
from mrisr.infer.engines.program import compile_network
from mrisr.infer.engines.slabs import SlabRunner
from mrisr.infer.engines.torch import TorchEngine
from mrisr.nn.presets import build
from mrisr.nn.vector import GUIDANCE_CHANNELS, VECTOR_DIM

SHAPE = (48, 40, 56)


def network(preset):
    """Random weights in every layer, those that start at zero included."""
    torch.manual_seed(3)
    net = build(preset).eval().requires_grad_(False)
    for parameter in net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return net.to(memory_format=torch.channels_last_3d)


def inputs(shape=SHAPE, guided=True):
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(1, 1, *shape, generator=generator) for _ in range(2))
    y = y.abs()
    y[..., 3 * shape[2] // 7 :] = 0  # air: with 16 voxels around tissue, some bricks are inactive
    vector = torch.randn(1, VECTOR_DIM, generator=generator)
    guidance = torch.randn(1, GUIDANCE_CHANNELS, *(n // 8 for n in shape), generator=generator)
    return x, y, vector, guidance * guided


@pytest.fixture(scope="module", params=["student", "tiny", "teacher-small"])
def whole(request):
    """(network, its inputs, its own forward)."""
    net, given = network(request.param), inputs()
    with torch.inference_mode():
        return net, given, net(*given)


@pytest.mark.parametrize("spill", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("rows", [1, 3, 7, None])
def test_slabs_give_the_whole_volume(whole, rows, spill, tmp_path):
    net, given, expected = whole
    runner = SlabRunner(net, compile_network(net), rows=rows, spill=tmp_path if spill else None)
    with torch.inference_mode():
        got = runner(*given)
    assert (got - expected).abs().max() < 3e-6 * expected.abs().max()
    assert not list(tmp_path.iterdir())


def test_guidance_and_the_mask_of_air_reach_the_result(whole):
    """The comparison above would not notice what both leave out."""
    net, (x, y, vector, guidance), expected = whole
    with torch.inference_mode():
        unguided = SlabRunner(net, compile_network(net))(x, y, vector, 0 * guidance)
        everything = SlabRunner(net, compile_network(net))(x, y, vector, guidance, torch.ones_like(guidance[:, :1]))
    assert (unguided - expected).abs().max() > 1e-3 * expected.abs().max()
    differs = (everything - expected).abs().max() > 1e-3 * expected.abs().max()
    assert differs == (net.config.norm == "group")


@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 64, 8), (16, 8, 24)])
def test_the_smallest_volumes(shape):
    for preset in ("student", "tiny"):
        net, given = network(preset), inputs(shape)
        with torch.inference_mode():
            expected = net(*given)
            got = SlabRunner(net, compile_network(net), rows=1)(*given)
        assert (got - expected).abs().max() <= 3e-6 * expected.abs().max()


def test_nan_spreads_as_far_as_the_network_carries_it_and_no_further():
    net, (x, y, vector, guidance) = network("student"), inputs((16, 16, 200))
    y[..., 0] = torch.nan
    with torch.inference_mode():
        got = SlabRunner(net, compile_network(net), rows=2)(x, y, vector, guidance)
        assert torch.equal(got.isnan(), net(x, y, vector, guidance).isnan())
    assert got[..., 0].isnan().all() and not got[..., -1].isnan().any()


def test_progress_runs_to_one():
    net, told = network("tiny"), []
    SlabRunner(net, compile_network(net), tick=told.append)(*inputs())
    assert told == sorted(told) and told[-1] == pytest.approx(1) and len(told) > 10


def test_maps_live_no_longer_than_the_program_says():
    """Every map is freed by the step that reads it last, and none is read after that."""
    for preset in ("student", "tiny"):
        alive = {"input"}
        for step in compile_network(network(preset)).steps:
            assert step.source in alive, step
            alive = (alive | {step.target}) - set(step.frees)
        assert alive == {"input", "output"}


PEAK = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_slabs import inputs, network
from mrisr.infer import memory
from mrisr.infer.engines.program import compile_network
from mrisr.infer.engines.slabs import SlabRunner
from pathlib import Path
torch.set_num_threads(2)
net, shape = network({preset!r}), (192, 208, 192)
program = compile_network(net)
SlabRunner(net, program)(*inputs((32, 32, 32)))
given = inputs(shape)
before = memory.resident()
with torch.inference_mode():
    SlabRunner(net, program, spill=Path({folder!r}) if {spill} else None)(*given)
volumes = 2 * given[1].nbytes  # the result; and a mask or a copy the size of one
print(memory.peak_resident() - before, program.peak(shape, spill={spill}) + volumes)
"""


@pytest.mark.slow("whole heads: what they take is what is promised")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
@pytest.mark.parametrize(("preset", "spill"), [("student", False), ("student", True), ("teacher-small", True)])
def test_the_predicted_peak_is_kept(preset, spill, tmp_path):
    code = PEAK.format(tests=str(Path(__file__).parent), preset=preset, spill=spill, folder=str(tmp_path))
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert run.returncode == 0, run.stderr
    measured, predicted = map(int, run.stdout.split())
    assert measured <= predicted + 80 * memory.MB, (measured, predicted)
    assert measured > 0.4 * predicted, "the prediction is far too large to be of use"


def test_a_full_disk_is_said_before_anything_runs(tmp_path, monkeypatch):
    full = namedtuple("usage", "total used free")(1, 1, 10)
    monkeypatch.setattr(slabs.shutil, "disk_usage", lambda folder: full)
    net = network("student")
    with pytest.raises(
        MemoryBudgetError, match=r"MB of scratch space in .* free; raise memory, or name another folder"
    ):
        SlabRunner(net, compile_network(net), spill=tmp_path)(*inputs())
    monkeypatch.undo()

    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(MemoryBudgetError, match="No space left on device"):
        SlabRunner(net, compile_network(net), spill=tmp_path)(*inputs())
    assert not list(tmp_path.iterdir())


def test_the_scratch_folder_is_the_stated_one_or_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert slabs.scratch_folder() == tmp_path
    for wrong in (tmp_path / "absent", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("TMPDIR", str(wrong))
        with pytest.raises(MemoryBudgetError, match="no folder that can be written to; raise memory, or name another"):
            slabs.scratch_folder()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(slabs, "_lies_in_memory", lambda folder: True)
    with pytest.warns(MrisrWarning, match="lies in memory: nothing is saved"):
        slabs.scratch_folder()


def test_the_student_runs_without_slow_convolutions_or_layout_conversions():
    """Nothing converts between layouts, and oneDNN has every convolution."""
    engine = TorchEngine(network("student"), torch.device("cpu"), threads=2)
    run, given = engine.prepare((64, 48, 40)), inputs((64, 48, 40))
    run(*given)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        run(*given)
    names = {event.key for event in found.key_averages()}
    assert "aten::mkldnn_convolution" in names
    assert not {name for name in names if "slow_conv" in name}
    # A conversion would copy a map between layouts: same sizes, other strides.
    kept = [event.input_shapes for event in found.events() if event.name == "aten::contiguous"]
    assert not [shapes for shapes in kept if shapes and np.prod(shapes[0]) > 64 * 48 * 40 // 8], kept


@pytest.mark.parametrize("preset", ["student", "tiny"])
def test_no_convolution_is_handed_a_layout_to_convert(preset, monkeypatch):
    seen, convolve = [], slabs.convolve

    def watched(x, conv, *rest):
        out = convolve(x, conv, *rest)
        last = torch.channels_last_3d
        seen.append(all(t.is_contiguous(memory_format=last) for t in (x, conv.weight, out)))
        return out

    monkeypatch.setattr(slabs, "convolve", watched)
    TorchEngine(network(preset), torch.device("cpu"), threads=2).prepare(SHAPE)(*inputs())
    assert len(seen) > 10 and all(seen)


def test_only_a_cpu_spills():
    engine = TorchEngine(network("tiny"), torch.device("meta"), threads=2)
    with pytest.raises(BackendError, match="only a CPU keeps them in a file; raise memory, or use device"):
        engine.prepare(SHAPE, exact=True, spill=True)


# --- the whole way ---


@pytest.fixture(scope="module")
def scan(head):
    return head((52, 44, 40), air=0.1)


def run(scan, model, **options):
    given = {"factor": 2, "input_voxel_size": 1.0, "threads": 2, "return_info": True, **options}
    return mrisr.upscale(scan, model=model, **given)


def spread(x):
    return np.percentile(x, 99.9) - np.percentile(x, 0.1)


@pytest.mark.parametrize("mode", ["mean", "sample"])
def test_exact_equals_one_piece_of_either_engine(scan, random_model, mode):
    model = random_model("local")
    whole, info = run(scan, model, engine="torch", mode=mode)
    rival, _ = run(scan, model, engine="openvino", mode=mode)
    exact, told = run(scan, model, tile="exact", mode=mode)
    assert (info.tiles.kind, told.tiles.kind, told.engine.name) == ("whole", "exact", "torch")
    assert "layer by layer" in told.engine.why and "no seams" in told.tiles.seam
    assert np.abs(exact - whole).max() <= 1e-5 * spread(whole)
    assert np.abs(exact - rival).max() <= 1e-5 * spread(whole)
    assert told.tiles.spilled == 0 and told.tiles.seam_error is None


@pytest.mark.parametrize("preset", ["local", "tiny"])
def test_a_small_budget_spills_and_changes_nothing(scan, random_model, preset, monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda: 500 * memory.MB)
    model = random_model(preset)
    whole, info = run(scan, model, engine="torch", memory="8GB")
    least = least_budget(scan, model)
    small, told = run(scan, model, tile="exact", memory=least)
    assert told.tiles.kind == "exact" and told.tiles.spilled > 5 * memory.MB
    assert told.memory_expected <= told.memory_budget < info.memory_expected
    assert np.abs(small - whole).max() <= 1e-5 * spread(whole)


def least_budget(scan, model) -> int:
    """What the refusal of a hopeless budget names."""
    with pytest.raises(MemoryBudgetError, match="smallest that works is") as caught:
        run(scan, model, tile="exact", memory=10**8)
    wanted = memory.parse_budget(str(caught.value).split("works is ")[1].split()[0])
    run(scan, model, tile="exact", memory=wanted)  # what is named works at once
    return wanted


def test_a_group_norm_network_spills_by_itself_and_is_never_tiled(scan, random_model, monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda: 500 * memory.MB)
    model = random_model("tiny")
    _, told = run(scan, model, engine="torch", memory=least_budget(scan, model))
    assert told.tiles.kind == "exact" and told.tiles.spilled > 0
    with pytest.raises(BackendError, match="normalises over the whole head"):
        run(scan, model, engine="torch", tile=88)


def test_exact_asks_for_an_engine_that_can(scan, random_model):
    with pytest.raises(BackendError, match="'exact' runs the network layer by layer, which engine 'openvino' cannot"):
        run(scan, random_model("local"), tile="exact", engine="openvino")


def test_blended_tiles_state_their_seam(scan, random_model):
    model = random_model("local")
    whole, _ = run(scan, model)
    tiled, told = run(scan, model, tile=64)
    worst = np.abs(tiled - whole).max() / spread(tiled)
    assert 0 < told.tiles.seam_error < 1
    # A bound on what is seen where two tiles meet; corners of four tiles may exceed it a little.
    assert worst < 4 * told.tiles.seam_error
