"""Distillation: the halved step is the right one, every stage really happens, a resumed run is the same run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mrisr.diffusion.schedule import nested_sigmas
from mrisr.errors import TrainingError
from mrisr.nn.vector import SAMPLE
from mrisr.train import distill, loop
from mrisr.train import teacher as residual
from mrisr.train.config import CONFIGS, DISTILLATIONS, DistillConfig, load_config
from mrisr.train.run import Run
from mrisr.weights import registry

pytestmark = pytest.mark.usefixtures("few_probes")


def quiet(text):
    pass


@pytest.fixture(scope="module")
def teacher(scans, tmp_path_factory):
    """A teacher that has learnt a little, so that it differs from the student's start."""
    folder = tmp_path_factory.mktemp("teacher")
    config = replace(CONFIGS["tiny"], data=(str(scans),), synthetic=0, steps=8, mean_fraction=0.5, validate_every=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residual, "PROBES", 12)  # as few_probes, which is for single tests
        loop.train(config, folder, quiet)
    return str(folder)


@pytest.fixture
def config(scans, teacher):
    return replace(DISTILLATIONS["distill-tiny"], data=(str(scans),), synthetic=0, hold_out=("bela",), teacher=teacher)


def test_two_steps_in_one_land_where_two_do():
    x = torch.randn(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    sigmas = nested_sigmas(4, 0.01, 10.0)

    def denoise(x, sigma):
        return torch.tanh(x / (1 + sigma.reshape(-1, 1, 1, 1, 1)))

    for last in (2, 4):  # in the middle, and down to 0
        start, mid, end = (sigmas[last - 2 + i].expand(3) for i in range(3))
        x0, first = distill.two_steps(denoise, x, start, mid, end)
        a, b, c = (float(s[0]) for s in (start, mid, end))
        half = b / a * x + (1 - b / a) * denoise(x, start)
        expected = c / b * half + (1 - c / b) * denoise(half, mid)
        torch.testing.assert_close(c / a * x + (1 - c / a) * x0, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(first, denoise(x, start))


def test_the_ladder_is_climbed_to_the_top():
    config = DistillConfig(steps=100, ladder=0.4)
    rungs = [distill.rung(step, config) for step in range(100)]
    assert rungs[:40] == [i // 4 for i in range(40)] and set(rungs[40:]) == {9}
    assert set(distill.rung(s, replace(config, ladder=0.0)) for s in range(100)) == {9}
    x = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    spread = [float(distill.blurred(x, level).std()) for level in range(10)]
    assert spread == sorted(spread) and torch.equal(distill.blurred(x, 9), x)
    flat = torch.full((1, 1, 16, 16, 16), 0.7)
    torch.testing.assert_close(distill.blurred(flat, 0), flat)


def test_hints_are_zero_for_equal_maps_and_measure_in_the_teachers_variance():
    maps = [torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    assert float(distill.hint_loss(maps, maps)) == 0
    means = [m.mean(dim=(1, 2, 3, 4), keepdim=True).expand_as(m) for m in maps]
    assert float(distill.hint_loss(means, maps)) == pytest.approx(1, rel=0.02)


def test_every_stage_happens_and_the_result_says_so(config, tmp_path, monkeypatch):
    seen, original = [], distill.Distillation.loss_of

    def noted(run, batch, draws, mode):
        name, loss = original(run, batch, draws, mode)
        seen.append((run.step, name, run.frozen_at))
        return name, loss

    monkeypatch.setattr(distill.Distillation, "loss_of", noted)
    gains = loop.train(replace(config, validate_every=16), tmp_path, quiet)
    names = {name for _, name, _ in seen}
    assert {"mean", "halving8", "halving4", "halving1"} <= names
    assert sum(name == "mean" for _, name, _ in seen) == 8
    assert [stage for _, _, stage in seen] == [step // 4 for step in range(16)]
    model = registry.load(tmp_path)
    assert model.meta["few_steps"] == [1, 2, 4] and model.meta["stages"] == [8, 4, 2, 1]
    assert model.meta["distilled_from"]["preset"] == "tiny" and len(model.meta["distilled_from"]["sha256"]) == 64
    assert model.meta["trained_range"] and "teacher" not in model.meta["config"]
    assert {"mean", "fsc", "steps1/gain", "steps2/fsc", "steps4/amplitude"} <= set(gains)
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(e["step"], e["rung"], e["learning_steps"]) for e in entries] == [(16, 9, 1)]


BEGINS = pytest.mark.slow("two distillations more; in the middle of a stage it is in `make test`")


@pytest.mark.parametrize("at", [6, pytest.param(8, marks=BEGINS)])  # in a stage, and where one begins
def test_a_resumed_run_is_bit_equal_to_one_in_one_piece(config, tmp_path, monkeypatch, at):
    config = replace(config, steps=12, hold_out=(), save_every=3 if at == 6 else 4, counts=(4, 2, 1))
    loop.train(config, tmp_path / "whole", quiet)
    original = Run.advance

    def interrupted(run):
        if run.step == at + 1:
            raise KeyboardInterrupt
        return original(run)

    monkeypatch.setattr(Run, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path / "parts", quiet)
    monkeypatch.setattr(Run, "advance", original)
    loop.train(config, tmp_path / "parts", quiet)
    whole, parts = (torch.load(tmp_path / n / "last.pt", weights_only=True) for n in ("whole", "parts"))
    for part in ("net", "adapters", "frozen"):
        assert all(torch.equal(whole[part][k], parts[part][k]) for k in whole[part]), part


def test_the_halving_loss_never_touches_the_mean(config, tmp_path, monkeypatch):
    run = _run(replace(config, hold_out=()), tmp_path)
    modes = []
    original = distill.Denoiser.forward
    monkeypatch.setattr(
        distill.Denoiser,
        "forward",
        lambda s, x, sigma, y, cond: modes.append((cond.mode, cond.steps)) or original(s, x, sigma, y, cond),
    )
    batch, draws = run.sampler.batch(0, 2, 24), distill_draws()
    for run.frozen_at in (0, 2):
        run._halving(batch, draws, 2, rehearse=False)
    assert len(modes) == 6 and all(int(m.min()) == SAMPLE for m, _ in modes)
    assert [int(n[0]) for _, n in modes] == [0, 0, 2, 4, 4, 2]


@pytest.mark.parametrize("off", ["halving", "ladder", "hints", "ground_truth", "teacher_mean"])
def test_every_ingredient_can_be_left_out(config, tmp_path, off):
    run = _run(replace(config, hold_out=(), **{off: 0.0}), tmp_path)
    batch, draws = run.sampler.batch(0, 2, 24), distill_draws()
    for mode in (0, 1):
        loss = run.loss_of(batch, draws, mode)[1]
        loss.backward()
        assert float(loss.detach()) > 0
    if off == "halving":
        assert run.loss_of(batch, draws, 1)[0] == "direct" and run.few_steps == []
    assert all((p.grad is None) == (off == "hints") for p in run.module.adapters.parameters())


def test_the_student_moves_towards_its_teacher(config, tmp_path):
    """A blank student learns the teacher's mean from the teacher alone."""
    alone = replace(config, hold_out=(), ground_truth=0.0, teacher_mean=1.0, hints=0.0, ladder=0.0, mean_fraction=1.0,
                    steps=60, warmup=4, lr=2e-3)  # fmt: skip
    run = _run(alone, tmp_path)
    losses = [run.advance()[1] for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_what_cannot_be_distilled_is_said(config, tmp_path, scans):
    with pytest.raises(TrainingError, match="teacher: .*neither shipped"):
        loop.train(replace(config, teacher="nobody"), tmp_path / "a", quiet)
    with pytest.raises(
        TrainingError, match="init: base holds preset 'student', from which preset 'tiny' of the run cannot begin"
    ):
        loop.train(replace(config, init="base"), tmp_path / "b", quiet)
    short = replace(config, hold_out=(), steps=4)
    loop.train(short, tmp_path / "c", quiet)
    with pytest.raises(TrainingError, match="not the teacher with which this run began"):
        loop.train(replace(short, teacher="base"), tmp_path / "c", quiet)
    with pytest.raises(TrainingError, match="steps: 4 -> 8"):
        loop.train(replace(short, steps=8), tmp_path / "c", quiet)
    for values in ({"counts": (8, 2)}, {"serve": (16,)}, {"hints": -1}, {"ground_truth": 0, "halving": 0}):
        with pytest.raises(TrainingError, match=next(iter(values))):
            DistillConfig(**values)
    assert load_config("distill-tiny", DISTILLATIONS, seed=4).seed == 4


def test_nan_keeps_the_last_good_checkpoint(config, tmp_path, monkeypatch):
    short = replace(config, hold_out=(), steps=4, save_every=1)
    original = distill.Distillation.loss_of

    def broken(run, batch, draws, mode):
        name, loss = original(run, batch, draws, mode)
        return name, loss * float("nan") if run.step == 2 else loss

    monkeypatch.setattr(distill.Distillation, "loss_of", broken)
    with pytest.raises(TrainingError, match="step 2: the loss is nan; the last good checkpoint"):
        loop.train(short, tmp_path, quiet)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == 2 and all(bool(torch.isfinite(v).all()) for v in state["net"].values())
    assert registry.load(tmp_path).meta["steps"] == 2


def distill_draws():
    from mrisr.train.batches import Draws

    return Draws(0, 0, (0, 1))


def _run(config, folder):
    from accelerate import Accelerator

    return distill.Distillation(config, folder, Accelerator(cpu=True))
