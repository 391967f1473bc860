"""The comparison asks what can be answered, and answers from the table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def comparison(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("comparison", BENCHMARKS / "comparison.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "comparison", module)
    spec.loader.exec_module(module)
    return module


def entry(method, psnr, gain, worst, **more):
    mean = {"psnr": psnr, "gain": gain, "ssim": 0.9, "hfen": 0.3, "fsc_beyond": 0.2, "fsc_area": 0.7, "seconds": 1.0}
    return {"method": method, "mean": {**mean, **more}, "worst": {"gain": worst}}


def test_a_student_that_meets_every_bar(comparison):
    rows = [
        entry("mean", 26.0, 1.8, 0.4),
        entry("mean-ensemble8", 26.1, 1.9, 0.5, seconds=8.0),
        entry("base-v3", 25.9, 1.7, 0.4),
        entry("L1", 25.94, 1.74, 0.3),
        entry("sample-1", 25.0, 0.8, 0.1, hfen=0.25, fsc_beyond=0.3),
        entry("sample-4", 25.0, 0.8, 0.1, fsc_area=0.68),
        entry("teacher-mean", 26.1, 1.9, 0.5),
        entry("teacher-16", 25.0, 0.8, 0.1, fsc_area=0.7),
    ]
    found = {v["question"]: v for v in comparison.verdicts(rows)}
    assert len(found) == 8
    unmet = [question for question, v in found.items() if not v["met"]]
    assert unmet == ["sample, 4 steps: better FSC and HFEN than the L1 network"]
    (beside,) = (v for question, v in found.items() if "within 0.05 dB of the L1 network" in question)
    assert beside["question"].startswith("base-v3, of equal size and budget") and beside["figures"] == "-0.04 dB"


def test_a_student_that_does_not(comparison):
    rows = [entry("mean", 26.0, 1.8, -0.1), entry("L1", 26.06, 1.86, 0.1), entry("teacher-mean", 26.2, 2.0, 0.1)]
    assert [v["met"] for v in comparison.verdicts(rows)] == [False, False]
    rows.append(entry("base-v3", 26.0, 1.8, 0.1))
    assert [v["met"] for v in comparison.verdicts(rows)] == [False] * 4


def test_rows_without_weights_are_neither_run_nor_asked_about(comparison):
    names = comparison.method_names(None, None, 16)
    assert "mean=mrisr" in names and not any("teacher" in name or "L1" in name for name in names)
    full = comparison.method_names("l1.safetensors", "teacher-small", 16, ["base-v1=old.safetensors"])
    assert "base-v1=old.safetensors" in full and not any(name.startswith("base-") for name in names)
    assert {"L1=l1.safetensors", "teacher-mean=teacher-small", "teacher-16=teacher-small@sample16"} <= set(full)
    assert [v["question"][:4] for v in comparison.verdicts([entry("mean", 26, 1, 1)])] == ["mean"]


def test_every_earlier_version_is_asked_about(comparison):
    rows = [entry("mean", 26.0, 1.8, 0.4), entry("base-v1", 25.9, 1.7, 0.3), entry("base-v2", 26.03, 1.83, 0.3)]
    found = {v["question"]: (v["met"], v["figures"]) for v in comparison.verdicts(rows)}
    assert found["mean: better than base-v1"] == (True, "+0.10 dB")
    assert found["mean: better than base-v2"] == (False, "-0.03 dB")
