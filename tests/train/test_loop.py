"""Training: resumes bit for bit, keeps people apart, stops on NaN with its last good checkpoint."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from mrisr import environment
from mrisr.data.scanners import ScannerClass
from mrisr.errors import MrisrWarning, TrainingError
from mrisr.nn.vector import MEAN
from mrisr.train import loop, run
from mrisr.train.batches import Draws
from mrisr.train.checkpoint import LAST
from mrisr.train.config import CONFIGS, TrainConfig, load_config
from mrisr.train.optim import Muon, orthogonalise
from mrisr.train.teacher import ResidualPower
from mrisr.train.volumes import gather_volumes
from mrisr.weights import registry

pytestmark = pytest.mark.usefixtures("few_probes")


@pytest.fixture
def config(scans):
    """Of real scans alone, one of them held out. Making heads and validating is most of the time of so few steps."""
    few = dict(steps=6, save_every=3, validate_every=3, synthetic=0)
    return replace(CONFIGS["tiny"], data=(str(scans),), hold_out=("bela",), **few)


@pytest.fixture
def unwatched(config):
    """The same, where nobody is held out: nothing is validated."""
    return replace(config, hold_out=())


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / run.WEIGHTS)


def label_map(folder):
    """Of four labels in slabs, somebody called Lotte."""
    slabs = np.repeat(np.arange(4, dtype=np.int16), 9)[:, None, None] * np.ones((1, 30, 30), np.int16)
    nib.save(nib.Nifti1Image(slabs, np.eye(4)), folder / "lotte.nii.gz")
    return folder / "lotte.nii.gz"


def quiet(text):
    pass


def test_a_run_from_before_a_setting_goes_on_with_its_default(config, tmp_path):
    loop.train(config, tmp_path, quiet)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    old = json.loads(state["config"])
    del old["families"], old["denoise"]
    torch.save({**state, "config": json.dumps(old)}, tmp_path / "last.pt")
    loop.train(replace(config, steps=config.steps + 1), tmp_path, quiet)
    with pytest.raises(TrainingError, match="denoise: 0.6 -> 0.5"):
        loop.train(replace(config, steps=config.steps + 1, denoise=0.5), tmp_path, quiet)


def test_a_run_on_one_family_is_judged_by_its_cases_and_says_what_it_has_not_learnt(config, tmp_path):
    config = replace(config, families=("slice",), denoise=0.0)
    gains = loop.train(config, tmp_path, quiet)
    judged = {name.rpartition("/")[2] for name in gains if "/" in name}
    assert judged == {"thick4", "thick5n"}
    meta, _ = registry.read(tmp_path / run.WEIGHTS)
    assert meta["denoise"] is False and meta["config"]["families"] == ["slice"]


def test_a_resumed_run_is_bit_equal_to_one_in_one_piece(config, tmp_path, monkeypatch):
    config = replace(config, synthetic=2)
    loop.train(config, tmp_path / "whole", quiet)
    # Interrupted in the fifth step, two after the checkpoint of step 3.
    original = run.Run.advance

    def interrupted(run):
        if run.step == 4:
            raise KeyboardInterrupt
        return original(run)

    monkeypatch.setattr(run.Run, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path / "parts", quiet)
    monkeypatch.setattr(run.Run, "advance", original)
    loop.train(config, tmp_path / "parts", quiet)
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_checkpoints_name_scanner_classes_as_they_always_did(unwatched, tmp_path):
    """Names that runs have written since the first format are read, and written again as they were."""
    names = ("iso1.0", "iso1.5n", "iso2.5t", "iso3", "iso3nh", "aniso", "anisonh", "samen", "blur1.5", "blur2.0n",
             "slice2", "slice4+", "slice8+n", "slice5nt")  # fmt: skip
    table = {"": 0.02, **{name: 0.01 * (i + 1) for i, name in enumerate(names)}}
    assert ResidualPower.from_state(table).state() == table
    with pytest.raises(ValueError, match="scanner class: expected"):
        ResidualPower.from_state({**table, "spiral": 1.0})
    loop.train(replace(unwatched, steps=3), tmp_path, quiet)
    path = tmp_path / LAST
    state = torch.load(path, weights_only=True)
    assert all(str(ScannerClass.parse(name)) == name for name in state["table"] if name)
    state["table"] = table
    torch.save(state, path)
    loop.train(replace(unwatched, steps=4), tmp_path, quiet)
    assert torch.load(path, weights_only=True)["table"] == table
    torch.save({**state, "table": {**table, "spiral": 1.0}}, path)
    with pytest.raises(TrainingError, match=f"{LAST}: .*scanner class"):
        loop.train(replace(unwatched, steps=6), tmp_path, quiet)


def test_what_leaves_a_run_can_be_loaded_and_says_what_it_is(config, tmp_path):
    gains = loop.train(config, tmp_path, quiet)
    assert set(gains) >= {"mean", "worst", "bela_t1w/iso2", "bela_t1w/thick4"}
    model = registry.load(tmp_path)
    assert model.meta["preset"] == "tiny" and model.meta["steps"] == 6
    assert [n.split("_")[0] for n in model.meta["held_out"]] == ["bela"]
    assert not any(n.startswith("bela") for n in model.meta["trained_on"])
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries] == [3, 6]
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".part") == []


def test_weights_say_what_those_they_began_with_had_learnt_from(config, tmp_path, monkeypatch):
    """And a run that would be judged by people whom its start knows says so."""
    monkeypatch.setattr(loop, "validation_cases", lambda *_, **__: [])
    loop.train(replace(config, hold_out=("anna",), steps=2), tmp_path / "first", quiet)
    leg = replace(config, init=str(tmp_path / "first" / run.WEIGHTS), steps=2)
    with pytest.warns(MrisrWarning, match="hold_out: the weights that the run begins with have learnt from bela"):
        loop.train(leg, tmp_path / "leg", quiet)
    loop.train(replace(leg, steps=3), tmp_path / "leg", quiet)  # resumed
    meta, _ = registry.read(tmp_path / "leg" / run.WEIGHTS)
    assert [name.split("_")[0] for name in meta["trained_on"]] == ["bela", "anna"]


def test_training_lowers_the_loss(unwatched, tmp_path):
    """Of pairs that are not trained on, the same before and after: what a step draws differs more than it learns."""
    from accelerate import Accelerator

    started = run.Run(
        replace(unwatched, synthetic=2, steps=60, lr=2e-3, mean_fraction=1), tmp_path, Accelerator(cpu=True)
    )
    batch = started.sampler.batch(10_000, 8, 24)

    def loss():
        with torch.no_grad():
            return float(started.loss_of(batch, Draws(0, 0, tuple(range(8))), MEAN)[1])

    before = loss()
    for _ in range(60):
        started.advance()
    assert loss() < before


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(unwatched, tmp_path, monkeypatch):
    loop.train(replace(unwatched, steps=3), tmp_path, quiet)
    before = (tmp_path / LAST).read_bytes()
    monkeypatch.setattr(run, "step_loss", lambda *a, **k: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(TrainingError, match="the loss is nan; the last good checkpoint"):
        loop.train(unwatched, tmp_path, quiet)
    assert (tmp_path / LAST).read_bytes() == before


def test_another_configuration_does_not_resume(unwatched, tmp_path):
    loop.train(replace(unwatched, steps=3), tmp_path, quiet)
    with pytest.raises(TrainingError, match="batch: 2 -> 3"):
        loop.train(replace(unwatched, batch=3), tmp_path, quiet)
    (tmp_path / LAST).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        loop.train(unwatched, tmp_path, quiet)


def test_a_run_does_not_go_back_nor_on_with_other_scans(unwatched, tmp_path):
    loop.train(replace(unwatched, steps=2), tmp_path, quiet)
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(TrainingError, match="is at step 2 already, and steps=1 are asked for"):
        loop.train(replace(unwatched, steps=1), tmp_path, quiet)
    more = tmp_path / "more"
    shutil.copytree(unwatched.data[0], more)
    shutil.copy(next(more.glob("bela*")), more / "carla.nii.gz")
    with pytest.raises(TrainingError, match="was trained on other scans .*carla"):
        loop.train(replace(unwatched, steps=3, data=(str(more),)), tmp_path, quiet)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == kept
    said = []
    loop.train(replace(unwatched, steps=2), tmp_path, said.append)
    assert "nothing left to do" in said[0]


def test_a_checkpoint_of_another_preset_or_kind_does_not_resume(unwatched, tmp_path):
    loop.train(replace(unwatched, steps=1), tmp_path, quiet)
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(TrainingError, match="preset: 'tiny' -> 'student'"):
        loop.train(replace(unwatched, steps=1, preset="student"), tmp_path, quiet)
    with pytest.raises(TrainingError, match="init: base holds preset 'student'"):
        loop.train(replace(unwatched, init="base"), tmp_path / "other", quiet)
    state = torch.load(tmp_path / LAST, weights_only=True)
    torch.save({**state, "format": 1}, tmp_path / LAST)
    with pytest.raises(TrainingError, match="another version of mrisr"):
        loop.train(replace(unwatched, steps=1), tmp_path, quiet)
    (tmp_path / LAST).write_bytes(before)
    loop.train(replace(unwatched, steps=2), tmp_path, quiet)


@pytest.mark.slow("half a minute of steps")
def test_a_warm_start_loses_less_than_a_twentieth_of_a_decibel(config, tmp_path):
    """A leg that begins with the averaged weights of the last one, with a warm-up of its own: what was learnt stays."""
    first = replace(config, hold_out=("bela",), steps=48, warmup=4, save_every=48, validate_every=48)
    learnt = loop.train(first, tmp_path / "first", quiet)["mean"]
    scratch = loop.train(replace(first, steps=2), tmp_path / "scratch", quiet)["mean"]
    assert learnt > scratch + 0.05
    leg = replace(first, init=str(tmp_path / "first" / run.WEIGHTS), warmup=40, seed=1)
    for steps in (2, 16):
        begun = loop.train(replace(leg, steps=steps), tmp_path / f"leg{steps}", quiet)["mean"]
        assert begun > learnt - 0.05


def test_dry_run_counts_without_training(config, tmp_path):
    plan = loop.plan(replace(config, synthetic=2))
    assert plan["parameters"] > 1000 and plan["voxels_per_step"] == 2 * 24**3
    assert [t["name"].split("_")[0] for t in plan["train"]] == ["anna", "synthetic-1000", "synthetic-1001"]
    plan = loop.plan(replace(config, data=(*config.data, str(label_map(tmp_path)))))
    assert [(t["name"].split("_")[0], t["kind"]) for t in plan["train"]] == [
        ("anna", "scan"),
        ("lotte.nii.gz[0]", "label map"),
    ]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_synthetic_pairs_is_what_is_asked_for(config, share):
    train, weights, held = gather_volumes(replace(config, synthetic=3, synthetic_share=share))
    made = sum(weight for volume, weight in zip(train, weights) if volume.name.startswith("synthetic"))
    assert made / sum(weights) == pytest.approx(share) and min(weights) > 0
    assert len(train) == {0.0: 1, 0.25: 4, 1.0: 3}[share] and [v.name.split("_")[0] for v in held] == ["bela"]


def test_nobody_is_held_out_by_a_misspelt_name_or_without_a_word(config, tmp_path):
    labels = label_map(tmp_path)
    with pytest.raises(TrainingError, match="no scan is named"):
        loop.plan(replace(config, hold_out=("berta",)))
    with pytest.warns(MrisrWarning, match="hold_out: kept out of training, but no truth.*: lotte.nii.gz"):
        train, _, held = gather_volumes(replace(config, hold_out=("bela", "lotte"), data=(*config.data, str(labels))))
    assert [v.name.split("_")[0] for v in (*train, *held)] == ["anna", "bela"]
    with pytest.raises(TrainingError, match="nothing to train on"):
        loop.plan(replace(config, data=(), hold_out=(), synthetic=0))


def test_bfloat16_is_taken_where_it_is_and_never_emulated(config, unwatched, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(environment, "bfloat16_instructions", tuple)
    assert loop.plan(replace(config, precision="auto", patch=24))["precision"] == "fp32"
    out = tmp_path / "run"
    for call in (loop.plan, lambda refused: loop.train(refused, out, quiet)):
        with pytest.raises(TrainingError, match="precision='bf16', but this processor .* use 'auto' or 'fp32'"):
            call(replace(config, precision="bf16"))
    assert not out.exists()
    loop.train(replace(unwatched, precision="auto"), out, quiet)
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["precision"] == "fp32"
    assert json.loads((out / "config.json").read_text())["precision"] == "auto"
    monkeypatch.setattr(environment, "bfloat16_instructions", lambda: ("AMX-BF16",))
    assert loop.plan(replace(config, precision="auto"))["precision"] == "bf16"
    assert loop.plan(config)["precision"] == "fp32"  # asked for


def test_a_run_goes_on_in_another_precision(unwatched, tmp_path):
    """It was begun on a processor that has bfloat16, and goes on where there is none."""
    loop.train(unwatched, tmp_path, quiet)
    state = torch.load(tmp_path / LAST, weights_only=True)
    began = {**json.loads(state["config"]), "precision": "bf16"}
    torch.save({**state, "config": json.dumps(began)}, tmp_path / LAST)
    more = unwatched.steps + 2
    loop.train(replace(unwatched, steps=more), tmp_path, quiet)
    assert torch.load(tmp_path / LAST, weights_only=True)["step"] == more


def test_configurations_are_checked(tmp_path):
    for field, value in (("patch", 20), ("mean_fraction", 0.1), ("precision", "fp8"), ("steps", 0)):
        with pytest.raises(TrainingError, match=field):
            TrainConfig(**{field: value})
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"preset": "tiny", "steps": 7, "data": ["a", "b"]}))
    assert load_config(str(file), seed=3) == TrainConfig(preset="tiny", steps=7, data=("a", "b"), seed=3)
    file.write_text(json.dumps({"learning": 1}))
    with pytest.raises(TrainingError, match="has the unknown field 'learning'"):
        load_config(str(file))
    for text, words in (
        ('{"steps": "7"}', "steps: expected a whole number, found '7'"),
        ('{"steps": 7.0}', "steps: expected a whole number, found 7.0"),
        ('{"prefetch": 1}', "prefetch: expected true or false, found 1"),
        ('{"data": "a"}', "data: expected a list, found 'a'"),
        ('{"hold_out": [1]}', r"hold_out\[0\]: expected text, found 1"),
        ('{"lr": NaN}', "NaN is not a number"),
        ('{"warmup": -1}', "warmup=-1 is out of range"),
        ("[1]", "expected an object, found a list"),
        ("[" * 100_000, "nests more than"),
    ):
        file.write_text(text)
        with pytest.raises(TrainingError, match=f"run.json: .*{words}"):
            load_config(str(file))
    file.write_text("{")
    with pytest.raises(TrainingError, match="not JSON"):
        load_config(str(file))
    with pytest.raises(TrainingError, match="neither a preset"):
        load_config("nothing")


def test_learning_rate_warms_up_and_ends_low():
    config = TrainConfig(steps=1000, warmup=100)
    rates = [run.learning_rate(s, config) for s in range(1000)]
    assert rates[0] == pytest.approx(config.lr / 100) and max(rates) == pytest.approx(config.lr, rel=1e-3)
    assert rates[-1] < 1.1 * config.final_lr + 1e-7


def test_muon_orthogonalises_and_descends():
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert float(values.min()) > 0.3 and float(values.max()) < 1.3
    weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3, 3, generator=torch.Generator().manual_seed(1)))
    optimizer = Muon([weight], lr=0.05)
    before = float(weight.detach().square().sum())
    for _ in range(30):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert float(weight.detach().square().sum()) < 0.8 * before
