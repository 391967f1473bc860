"""The race of sizes and the wait for pairs: what they compare differs in one thing alone, and a race goes on."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS, EXPERIMENTS = (Path(__file__).resolve().parents[2] / name for name in ("benchmarks", "experiments"))


@pytest.fixture
def script(monkeypatch):
    pytest.importorskip("accelerate", reason="training needs accelerate (extra train)")
    for folder in (BENCHMARKS, EXPERIMENTS):
        monkeypatch.syspath_prepend(str(folder))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_sizes_differ_in_size_alone_and_are_what_is_said(script, monkeypatch):
    race = script("size_race")
    monkeypatch.setattr(race.presets, "PRESETS", {race.preset(size): c for size, c in race.SIZES.items()})
    first, second = (race.configuration(("a",), size, 3) for size in ("third", "large"))
    assert {k for k, v in vars(first).items() if v != getattr(second, k)} == {"preset"}
    count = {size: sum(p.numel() for p in race.presets.build(race.preset(size)).parameters()) for size in race.SIZES}
    assert count["third"] == pytest.approx(count["student"] / 3, rel=0.1) and 7e6 < count["large"] < 8e6
    work = {size: race.flop_per_voxel(size, 16) for size in race.SIZES}
    assert work["student"] == pytest.approx(89_700, rel=0.01) and work["third"] < 0.35 * work["student"]


def test_runs_with_and_without_prefetch_differ_in_that_alone(script):
    wait = script("pair_wait")
    first, second = (wait.configuration(("a",), ahead) for ahead in (False, True))
    assert {k for k, v in vars(first).items() if v != getattr(second, k)} == {"prefetch"} and second.prefetch


def test_a_race_goes_on_where_it_was_left(script, monkeypatch, tmp_path):
    """A size that is done stays; one that was begun goes on from its checkpoint; a race of other minutes is refused."""
    race = script("size_race")
    small = race.UNetConfig(widths=(8, 8, 8), encoder=(1, 1), middle=1, decoder=(1, 1))
    monkeypatch.setattr(race, "SIZES", {"third": small, "student": small})
    monkeypatch.setattr(race.presets, "PRESETS", dict(race.presets.PRESETS))
    monkeypatch.setattr(race, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(race.study, "PROBES", 2)
    monkeypatch.setattr(race.teacher, "PROBES", 2)
    monkeypatch.setattr(race.study, "by_contrast", lambda gains: {})
    monkeypatch.setattr(race, "validation_cases", lambda people: [])
    how = dict(synthetic=1, warmup=2, batch=2, patch=16, precision="fp32")
    monkeypatch.setattr(
        race, "configuration", lambda data, size, seed: race.TrainConfig(preset=race.preset(size), steps=10**6, **how)
    )
    clock = itertools.count()
    monkeypatch.setattr(race.time, "process_time", lambda: float(next(clock)))  # a second a block
    steps, rates = [], []
    advance, save = race.Race.advance, race.Race.save

    def step(run):
        steps.append(run.config.preset)
        result = advance(run)
        rates.append(run.optimizers[0].param_groups[0]["lr"] / run.optimizers[0].param_groups[0]["peak"])
        return result

    monkeypatch.setattr(race.Race, "advance", step)
    words = ["size_race", "--data", "none", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*words, "--minutes", "0.05"])

    def killed(run):
        save(run)
        if run.config.preset == "race-student":
            raise KeyboardInterrupt

    monkeypatch.setattr(race.Race, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        race.main()
    assert [row["size"] for row in json.loads((tmp_path / "size_race.json").read_text())["rows"]] == ["third"]
    begun = steps.count("race-third"), steps.count("race-student")
    assert begun[1] == 1 + race.FIRST < begun[0]
    assert rates[begun[0] - 1] < 0.2 * max(rates)  # the whole decay
    monkeypatch.setattr(race.Race, "save", save)
    assert race.main() == 0 and steps.count("race-third") == begun[0]
    rows = {row["size"]: row for row in json.loads((tmp_path / "size_race.json").read_text())["rows"]}
    assert rows["student"]["steps"] == steps.count("race-student") and rows["third"]["steps"] == begun[0]
    assert [rows[size]["cpu_seconds"] for size in ("third", "student")] == [3, 3]
    assert not list((tmp_path / "runs").rglob("*.pt"))
    monkeypatch.setattr(sys, "argv", [*words, "--minutes", "0.3"])
    with pytest.raises(SystemExit):
        race.main()
