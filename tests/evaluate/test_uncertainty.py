"""Conformal factors: exact on small sets, right where the spread is wrong by a known factor, split by person."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mrisr.cli.main import main
from mrisr.evaluate import safety_report
from mrisr.evaluate.uncertainty import Spread, calibrate, conformal_factor
from mrisr.weights import registry


def person(name, wrong_by, n=40_000, seed=0, case="iso2"):
    rng = np.random.default_rng(seed)
    std = rng.uniform(0.01, 0.05, n)
    return Spread(name, case, np.abs(rng.normal(0, wrong_by * std)), std, rng.integers(2, size=n))


def test_the_factor_is_the_order_statistic():
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 7.0, 8.0, 6.0])
    assert conformal_factor(scores, 0.5) == 5.0  # the 5th of 9: ceil(10 * 0.5)
    assert conformal_factor(scores, 0.9) == 9.0
    assert conformal_factor(scores, 0.91) == math.inf


def test_a_spread_that_is_too_small_is_found_and_repaired():
    found = calibrate([person("a", 2.0, seed=1), person("b", 2.0, seed=2)], samples=4, steps=1)
    for fold in found["folds"]:
        assert fold["calibrated_on"] != [fold["tested_on"]]
        by_level = {row["level"]: row for row in fold["rows"]}
        assert by_level[0.6827]["factor"] == pytest.approx(2.0, rel=0.03)
        assert by_level[0.6827]["coverage_raw"] == pytest.approx(0.383, abs=0.01)  # P(|z| < 1/2)
        for level, row in by_level.items():
            assert row["coverage"] == pytest.approx(level, abs=0.01)
    assert found["stored"]["scale"]["0.9"] == pytest.approx(2 * 1.645, rel=0.02)
    assert found["stored"]["people"] == ["a", "b"] and (found["stored"]["samples"], found["stored"]["steps"]) == (4, 1)


def test_people_who_differ_are_not_hidden():
    """Calibrated on the easy one, the intervals fail on the other, and the table says so."""
    found = calibrate([person("easy", 1.0), person("hard", 3.0)], samples=4, steps=1)
    hard = next(fold for fold in found["folds"] if fold["tested_on"] == "hard")
    assert next(row for row in hard["rows"] if row["level"] == 0.9)["coverage"] < 0.5
    bars = safety_report._spread_bars(found)
    assert [bar["met"] for bar in bars] == [False, False]


def test_one_person_is_split_in_halves_and_no_spread_is_no_excuse():
    one = person("a", 1.0)
    one.std[:1000] = 0.0
    found = calibrate([one], samples=2, steps=1)
    assert [fold["tested_on"] for fold in found["folds"]] == ["a, half 1", "a, half 2"]
    assert "0.99" not in found["stored"]["scale"]  # 2.5 % of the voxels claim to be certain: no factor does
    assert {row["half_width"] for fold in found["folds"] for row in fold["rows"] if row["level"] == 0.99} == {None}
    assert "| 99.0% | " in safety_report.spread_table(found)
    assert found["stored"]["scale"]["0.9"] < 2.2


def test_the_command_writes_one_report(scans, tmp_path, capsys):
    out = tmp_path / "out"
    methods = f"cubic,less={registry.locate('base')}@denoise"
    command = ["evaluate", str(scans / "two.nii"), "-o", str(out), "--safety", "--cases", "iso2n", "--methods", methods]
    assert main([*command, "--samples", "2", "--engine", "torch"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["safety.json", "safety.md"]
    report = json.loads((out / "safety.json").read_text())
    assert safety_report.render(report) == (out / "safety.md").read_text()
    assert report["volumes"] == ["two"] and len(report["rows"]) == 2
    asked = report["settings"]["command"]
    assert " --methods cubic,less=base.safetensors@denoise --samples 2 " in asked, "as asked for, no folder"
    assert len(report["weights"]) == 64 and report["uncertainty"]["stored"]["people"] == ["two"]
    assert {bar["met"] for bar in report["bars"] if bar["method"] == "cubic"} == {None}
    assert "lesions survive" in capsys.readouterr().out
    assert main([*command, "--samples", "1", "--force"]) == 2
    assert "one sample has no spread" in capsys.readouterr().err
