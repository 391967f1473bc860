"""Learning from the scan itself: that it is learning, of the scan, and the same again; what it tells and refuses."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mrisr
from mrisr.adapt import learn as learning
from mrisr.adapt import pairs as of_pairs
from mrisr.adapt import plan, run, seconds
from mrisr.adapt.pairs import Patches, measured
from mrisr.errors import BackendError, InputError, MemoryBudgetError, ModelError, MrisrWarning, OutputError, UsageError
from mrisr.infer.facts import Options
from mrisr.nn.presets import build
from mrisr.report.notebook import Account
from mrisr.train.checkpoint import export_weights
from mrisr.volume import Volume
from tests.stacks import FINE, phantom, stack

ROOT = Path(__file__).resolve().parents[2]
HOW = dict(voxel_size=1.0, threads=1, engine="torch", return_info=True)
LONG = 600.0  # seconds: more than these few steps take on any machine


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Six small steps, whatever the seconds."""
    monkeypatch.setattr(seconds, "STEPS", 6)
    monkeypatch.setattr(of_pairs, "VOXELS", 32**3)
    monkeypatch.setattr(learning, "RATE", 2e-3)


@pytest.fixture(scope="module")
def truth():
    return phantom()


@pytest.fixture(scope="module")
def scan(truth):
    return stack(truth, 2)


@pytest.fixture(scope="module")
def model(random_model):
    """Random detail is worse than none: there is something to be learnt at once."""
    return replace(random_model("local"), meta={"format": 1, "preset": "tiny", "sigma_data": 0.05, "uncertainty": []})


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Weights of a preset that can learn here, with random detail."""
    torch.manual_seed(0)
    net = build("student")
    torch.nn.init.normal_(net.exit.weight, std=0.05)
    path = tmp_path_factory.mktemp("weights") / "student.safetensors"
    export_weights(path, net.state_dict(), {"format": 1, "preset": "student", "sigma_data": 0.05, "uncertainty": []})
    return mrisr.load_model(path)


def plan_of(scan, model, target=FINE, **options):
    return plan.plan_training(scan, target, model, Options(threads=1, **options), LONG)


def of_scan(truth, scan, model, name="scan"):
    """(pairs of the truth itself, their plan)."""
    its_plan = plan_of(scan, model)
    head = torch.from_numpy(truth / 700)
    return of_pairs.training_pairs(head, its_plan, 0.01, 0, name), its_plan


def test_what_has_learnt_answers_otherwise_and_says_so(scan, model):
    how = HOW | {"consistency": "off"}  # the answer alone, without what goes back onto it
    before = {name: v.clone() for name, v in model.denoiser.net.state_dict().items()}
    base, plain = mrisr.upscale(scan, model=model, **how)
    told = []
    result, info = mrisr.upscale(scan, model=model, adapt=LONG, progress=lambda *where: told.append(where), **how)
    adapt = info.adapt
    assert plain.adapt is None and adapt.used and adapt.gain_db > 0 and adapt.in_time
    assert (adapt.steps, adapt.planned, adapt.limit, adapt.seed) == (6, 6, LONG, 0)
    assert adapt.loss[1] < adapt.loss[0] and 0 < adapt.seconds < LONG
    assert (adapt.slices_mm, adapt.voxel_mm, adapt.precision) == (4.0, 1.0, "float32")
    assert info.weights == adapt.weights != plain.weights == adapt.base and "adapted" in info.model
    assert np.abs(result.data - base.data).max() > 1 and result.data.shape == base.data.shape
    assert np.array_equal(result.affine, base.affine)
    after = model.denoiser.net.state_dict()
    assert all(torch.equal(before[name], v) for name, v in after.items())  # a copy has learnt
    assert all(p.grad is None for p in model.denoiser.parameters())
    assert np.array_equal(mrisr.upscale(scan, model=model, **how)[0].data, base.data)
    assert ("adapt", 1.0) in told and "adapt" in info.seconds and info.to_dict()["adapt"]["steps"] == 6
    json.loads(info.to_json())
    assert info.memory_expected > plain.memory_expected
    assert "learnt from the scan  6 steps, held-back planes +" in repr(Account(info))


def test_the_same_again_is_the_same_and_another_seed_is_not(scan, model):
    one, first = mrisr.upscale(scan, model=model, adapt=LONG, **HOW)
    two, second = mrisr.upscale(scan, model=model, adapt=LONG / 2, **HOW)
    other, third = mrisr.upscale(scan, model=model, adapt=LONG, seed=1, **HOW)
    assert np.array_equal(one.data, two.data) and first.weights == second.weights
    assert first.adapt.loss == second.adapt.loss and first.adapt.gain_db == second.adapt.gain_db
    assert not np.array_equal(one.data, other.data) and first.weights != third.weights


def test_kept_weights_give_the_same_result_by_every_engine(scan, student, tmp_path):
    kept = tmp_path / "session.safetensors"
    base, _ = mrisr.upscale(scan, model=student, **HOW)
    for engine in ("torch", "openvino"):
        how = HOW | {"engine": engine}
        path = kept if engine == "torch" else tmp_path / "again.safetensors"
        result, info = mrisr.upscale(scan, model=student, adapt=LONG, keep_adapted=path, **how)
        again, plain = mrisr.upscale(scan, model=path, **how)
        assert np.array_equal(again.data, result.data) and plain.adapt is None
        assert plain.weights == info.weights == info.adapt.weights
        assert np.abs(result.data - base.data).max() > 1  # what was compiled of the weights before did not answer
    header = mrisr.load_model(kept).meta
    about = header["adapted"]
    assert about["from"] == student.sha256 and (about["steps"], about["seed"], about["slices_mm"]) == (6, 0, 4.0)
    assert "uncertainty" not in header and scan.name not in json.dumps(header) and str(tmp_path) not in str(header)
    assert header["name"] == "weights+adapted"  # a word: `mrisr export` refuses other names
    # And they can learn on, from what they are.
    _, info = mrisr.upscale(scan, model=kept, adapt=LONG, **HOW)
    assert info.adapt.base == mrisr.load_model(kept).sha256


def test_adapted_weights_leave_nothing_in_the_cache(scan, model, tmp_path, monkeypatch):
    monkeypatch.setenv("MRISR_CACHE", str(tmp_path))
    how = HOW | {"engine": "openvino"}
    mrisr.upscale(scan, model=model, **how)
    graphs = sorted(p.name for p in tmp_path.glob("openvino-*"))
    _, info = mrisr.upscale(scan, model=model, adapt=LONG, **how)
    assert info.adapt.used and sorted(p.name for p in tmp_path.glob("openvino-*")) == graphs


def test_nothing_asked_for_is_as_ever(scan, model):
    plain, _ = mrisr.upscale(scan, model=model, **HOW)
    for nothing in (None, 0, 0.0):
        result, info = mrisr.upscale(scan, model=model, adapt=nothing, **HOW)
        assert np.array_equal(result.data, plain.data) and info.adapt is None


@pytest.mark.parametrize("what", ["worse", "no number"])
def test_where_the_planes_held_back_gain_nothing_the_answer_is_that_of_the_weights_before(
    scan, model, tmp_path, monkeypatch, what
):
    plain, before = mrisr.upscale(scan, model=model, **HOW)
    if what == "worse":
        gains = iter((20.0, 19.88))
        monkeypatch.setattr(run, "judged", lambda *_: next(gains))
    else:
        monkeypatch.setattr(learning, "RATE", float("inf"))
    kept = tmp_path / "kept.safetensors"
    words = r"gained nothing by learning \(-0.12 dB\)" if what == "worse" else "the loss was no number"
    with pytest.warns(MrisrWarning, match=f"{words}.*answer of random local, not adapted; kept.safetensors is not"):
        result, info = mrisr.upscale(scan, model=model, adapt=LONG, keep_adapted=kept, **HOW)
    assert np.array_equal(result.data, plain.data) and not info.adapt.used and not list(tmp_path.iterdir())
    assert info.weights == before.weights and info.model == before.model and info.adapt.weights == ""
    assert any("gained nothing" in text for text in info.warnings)
    json.loads(info.to_json())


def test_the_seconds_end_it_and_it_says_that_it_depends_on_the_clock(scan, model, monkeypatch):
    monkeypatch.setattr(seconds, "STEPS", 10**6)
    monkeypatch.setattr(seconds, "STEPS_PER_SECOND", 10**6)
    with pytest.warns(MrisrWarning, match=r"adapt: 1 s were over after \d+ of 1000000 steps: .*depends on the speed"):
        _, info = mrisr.upscale(scan, model=model, adapt=1, **HOW)
    assert not info.adapt.in_time and 0 < info.adapt.steps < info.adapt.planned and info.adapt.seconds < 20
    assert any("depends on the speed" in text for text in info.warnings)


def test_the_seconds_are_of_the_steps_alone(truth, scan, model, monkeypatch):
    """What is made before the first step (PyTorch's optimizers take seconds to import) does not use them up."""
    pairs, its_plan = of_scan(truth, scan, model)
    slow = Patches.__init__
    monkeypatch.setattr(Patches, "__init__", lambda *given: (time.sleep(1.2), slow(*given))[1])
    short = replace(its_plan, seconds=1.0)
    outcome = learning.learn(model.denoiser, pairs, short, "scan", lambda part: None)
    assert len(outcome.losses) >= 1


def test_the_seconds_ask_for_steps_whatever_the_machine(monkeypatch):
    monkeypatch.setattr(seconds, "STEPS", 450)
    assert [seconds.steps_of(s) for s in (1, 2, 60, 179, 180, 3600)] == [2, 5, 150, 447, 450, 450]


def test_warnings_of_the_scan_are_given_once(scan, model, recwarn):
    bright = scan.replace(scan.data.copy())
    bright.data[18:20, 18:20, 4:6] = 30_000  # an implant
    _, info = mrisr.upscale(bright, model=model, adapt=LONG, **HOW)
    texts = [str(w.message) for w in recwarn if issubclass(w.category, MrisrWarning)]
    assert len(texts) == len(set(texts)) and sorted(texts) == sorted(info.warnings)


def test_pairs_are_the_scan_turned(truth, scan, model):
    its_pairs, its_plan = of_scan(truth, scan, model)
    assert its_plan.shifts == (0, 1, 2, 3) and len(its_pairs) == 8
    assert {pair.order[2] for pair in its_pairs} == {0, 1}
    for pair in its_pairs:
        assert pair.thick == 2 and pair.edges == (0.5, 0.5, 0.125)
        assert torch.allclose(pair.cond.spacing, torch.tensor([[0.0, 0.0, 2.0]]))  # four voxels: the slices last
        assert [int(k) for k in pair.cond.profile[0]] == [1, 1, 2]
        error = pair.y - pair.target
        spectrum = torch.fft.rfft(error, dim=pair.order[2]).abs().mean()
        assert error.square().mean() > 1e-5 and spectrum > 0
    # Blurred along the new slices, not along the other axis in plane.
    pair = its_pairs[0]
    ratio = [pair.y.diff(dim=a).square().mean() / pair.target.diff(dim=a).square().mean() for a in (0, 1)]
    assert ratio[0] < 0.5 < ratio[1]


def test_what_is_held_back_is_never_learnt_from(truth, scan, model):
    its_pairs, its_plan = of_scan(truth, scan, model)
    low, high = its_pairs[0].reserve
    assert 2 <= high - low <= 8
    marked = []
    for pair in its_pairs:
        target = torch.zeros_like(pair.target)
        target[:, :, low:high] = 1
        marked.append(replace(pair, target=target))
    patches = Patches(marked, 0, "scan")
    for _ in range(20):
        target, y, cond, edges = patches.batch()
        assert not target.any() and target.shape == y.shape and len(cond.noise) == len(target)
        assert sorted(edges) == [0.125, 0.5, 0.5] and edges[2] == 0.5


def test_only_what_was_measured_is_learnt(truth, scan, model):
    """An error above the frequencies of the true slices has no gradient; one below them has."""
    x = torch.zeros(2, 1, 16, 16, 16)
    wave = torch.cos(torch.pi * torch.arange(16))
    x += wave[:, None, None]
    assert measured(x, (0.125, 0.5, 0.5)).abs().max() < 1e-6 and torch.equal(measured(x, (0.5, 0.5, 0.5)), x)
    slow = torch.cos(2 * torch.pi * torch.arange(16) / 16)[:, None, None].expand(2, 1, 16, 16, 16)
    assert torch.allclose(measured(slow, (0.125, 0.5, 0.5)), slow, atol=1e-6)


def test_finer_in_plane_than_across_is_learnt_in_even_voxels(truth, model):
    """0.5 x 0.5 x 4 mm onto 0.5 x 0.5 x 0.7: the new slices ask of the network what the true ones do."""
    volume = Volume(np.repeat(np.repeat(stack(truth, 2).data, 2, 0), 2, 1), np.diag([0.5, 0.5, 4, 1]), name="fine")
    target = mrisr.grid.plan(volume.grid)
    assert target.voxel_size == pytest.approx((0.5, 0.5, 0.7))
    its_plan = plan_of(volume, model, target, psf=(("kspace", 0.5), ("kspace", 0.5), ("gaussian", 4)))
    assert its_plan.voxel == pytest.approx(0.7) and its_plan.shifts == (0, 1, 2, 3, 4)
    assert [p.width for p in its_plan.psf] == pytest.approx([0.7, 0.7, 4])
    assert its_plan.edges == pytest.approx((0.5, 0.5, 0.5 * 0.7 / 4))
    pair = of_pairs.training_pairs(torch.rand(target.shape), its_plan, None, 0, "fine")[0]
    assert pair.target.shape == (57, 57, target.shape[2])
    assert torch.allclose(pair.cond.spacing, torch.log2(torch.tensor([[1, 1, 4 / 0.7]])), atol=1e-3)
    # Coarser in plane than the target: what lies between is the network's own, and not learnt.
    coarse = plan_of(stack(truth, 2), model, mrisr.grid.plan(stack(truth, 2).grid))
    assert coarse.edges == pytest.approx((0.35, 0.35, 0.0875))


def refused(kind, text, volume, network, **options):
    with pytest.raises(kind, match=text) as raised:
        mrisr.upscale(volume, model=network, **HOW | {"adapt": LONG} | options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("seconds", [-1, 0.5, 3601, math.nan, math.inf, True, "120", [120]])
def test_seconds_that_are_none(scan, model, seconds):
    refused(UsageError, "adapt: expected None, or from 1 to 3600 seconds", scan, model, adapt=seconds)


@pytest.mark.parametrize(
    ("kind", "text", "options"),
    [
        (UsageError, "which leaves nothing to be learnt", {"voxel_size": 3.0}),
        (MemoryBudgetError, "learning from the scan takes [0-9.]+[GM]B, and the budget is 500MB", {"memory": "500MB"}),
    ],
)
def test_options_that_do_not_go_with_the_scan(scan, model, kind, text, options):
    refused(kind, text, scan, model, **options)


@pytest.mark.parametrize(
    ("kind", "text", "options"),
    [
        (UsageError, 'teaches mode "mean"', {"samples": 2}),
        (UsageError, 'teaches mode "mean"', {"steps": 4}),
        (UsageError, 'teaches mode "mean"', {"mode": "sample"}),
        (UsageError, "leave denoise at 0", {"denoise": 1.0}),
        (BackendError, "engine tensorrt runs a plan", {"engine": "tensorrt"}),
        (UsageError, "only with adapt=SECONDS", {"adapt": None, "keep_adapted": "x.safetensors"}),
        (OutputError, "x.pt: expected a file name ending in .safetensors", {"keep_adapted": "x.pt"}),
        (OutputError, "there is no directory", {"keep_adapted": "nowhere/x.safetensors"}),
    ],
)
def test_options_that_do_not_go_with_it_are_refused_before_anything_is_read(kind, text, options):
    refused(kind, text, "nowhere.nii.gz", "no such model", **options)
    if not any(name.startswith(("keep", "adapt")) for name in options):  # which several scans are no excuse for
        refused(kind, text, ["nowhere.nii.gz"] * 2, "no such model", **options)


def test_several_scans_are_refused_before_one_is_read():
    text = "adapt: is of one scan, and several are joined"
    refused(UsageError, text, ["nowhere.nii.gz"] * 2, "no such model")


def test_a_machine_that_cannot_is_refused_before_the_scan_is_read(model, monkeypatch):
    refused(BackendError, "no CUDA device|without CUDA", "nowhere.nii.gz", model, device="cuda:7")
    monkeypatch.setattr(plan, "bfloat16_absence", lambda device: "this processor has none")
    refused(BackendError, "bfloat16 was asked for, but this", "nowhere.nii.gz", model, precision="bfloat16")


def test_scans_that_have_nothing_to_teach(truth, scan, model):
    even = Volume(truth, FINE.affine, name="even")
    refused(InputError, "^even: adapt: has no sharp plane to learn from: 1 x 1 x 1 mm", even, model, voxel_size=0.7)
    half = Volume(truth[:, ::3, ::3], np.diag([1, 3, 3, 1]), name="half")
    refused(InputError, "^half: adapt: has no sharp plane.*one axis has to be 1.8 times as coarse", half, model)
    few = Volume(scan.data[..., :8], scan.affine, name="few")
    refused(InputError, "^few: adapt: has 8 slices, and at least 10", few, model)
    data = scan.data.copy()
    data[..., 2:] *= 0.001
    empty = Volume(np.concatenate([data] * 2, axis=2), scan.affine, name="empty")
    refused(InputError, "^empty: adapt: (the head lies in|beside the planes)", empty, model)
    frames = Volume(np.stack([scan.data] * 2, axis=3), scan.affine, name="frames")
    refused(InputError, "^frames: adapt: has 2 frames.*keep its weights", frames, model)
    narrow = Volume(scan.data[12:28, 12:28], scan.affine, name="narrow")
    refused(InputError, "^narrow: adapt: .*leave adapt out", narrow, model)
    refused(UsageError, "adapt: is of one scan, and several are joined", [scan, stack(truth, 0)], model)
    labels = Volume(np.round(scan.data / 100).astype(np.uint8), scan.affine, name="sub-1_dseg.nii.gz")
    refused(InputError, "^sub-1_dseg.nii.gz: .*its name ends in _dseg", labels, model)


def test_networks_that_cannot_learn_are_refused_before_the_scan_is_read(model, random_model):
    where = "nowhere.nii.gz"
    refused(UsageError, "random teacher-small normalises over the whole head", where, random_model("teacher-small"))
    other = replace(model, denoiser=learning.Denoiser(torch.nn.Identity(), 0.05), name="mine")
    refused(UsageError, "mine is a Identity, and only", where, other)
    refused(ModelError, "random local is of no preset", where, random_model("local"), keep_adapted="x.safetensors")


def test_a_file_that_is_there_stays(scan, model, tmp_path):
    path = tmp_path / "there.safetensors"
    path.write_text("mine")
    refused(OutputError, "there.safetensors: exists already", scan, model, keep_adapted=path)
    assert path.read_text() == "mine"


def test_one_frame_of_a_series_is_one_image(scan, model):
    one = Volume(scan.data[..., None], scan.affine, name="one")
    result, info = mrisr.upscale(one, model=model, adapt=LONG, **HOW)
    plain, _ = mrisr.upscale(scan, model=model, adapt=LONG, **HOW)
    assert result.data.shape == (*FINE.shape, 1) and np.array_equal(result.data[..., 0], plain.data)


def test_a_background_that_somebody_has_written_is_not_learnt(truth, model):
    """-1024 around the head is no edge of it."""
    masked = stack(truth, 2)
    data = masked.data.copy()
    data[data < 150] = -1024
    its_plan = plan_of(masked, model)
    _, info = mrisr.upscale(Volume(data, masked.affine, name="masked"), model=model, adapt=LONG, **HOW)
    assert info.adapt.loss[0] < 50 and its_plan.thick == 2


PEAK = """
import json, sys
import mrisr, numpy as np
from mrisr.adapt import plan, seconds
from mrisr.infer import memory
from mrisr.infer.facts import Options
seconds.STEPS = 2
shape = (96, 96, 24)
at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
head = ((np.sqrt((at**2).sum(0)) < 0.9) * (500 + 100 * np.sin(9 * at).prod(0))).astype(np.float32)
scan = mrisr.Volume(head, np.diag([1, 1, 4, 1]), name="head")
model, how = mrisr.load_model("base"), dict(voxel_size=1.0, threads=1, precision=sys.argv[1])
target = mrisr.grid.plan(scan.grid, voxel_size=1.0)
planned = plan.plan_training(scan, target, model, Options(threads=1, precision=sys.argv[1]), 600.0)
need = plan.demand(planned, target, model, memory.resident())
_, info = mrisr.upscale(scan, model=model, adapt=600.0, return_info=True, **how)
print(json.dumps({"need": need, "peak": memory.peak_resident(), "steps": info.adapt.steps}))
"""


def test_learning_keeps_to_the_memory_that_is_asked_for():
    run = subprocess.run(
        [sys.executable, "-c", PEAK, "float32"], capture_output=True, text=True, cwd=ROOT, env={**os.environ}
    )
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout.splitlines()[-1])
    assert facts["steps"] == 2 and 0.4 * facts["need"] < facts["peak"] < facts["need"], facts
