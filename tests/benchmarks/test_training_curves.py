"""Curves from logs: resumed runs, other logs, broken ones."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from mrisr.errors import UsageError

BENCHMARKS, EXPERIMENTS = (Path(__file__).resolve().parents[2] / name for name in ("benchmarks", "experiments"))


@pytest.fixture
def curves(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("training_curves", EXPERIMENTS / "training_curves.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(step, mean, **more):
    return {
        "step": step,
        "loss": 1.0,
        "a/iso2": mean,
        "b/iso2": mean + 1,
        "a/mix": 0.0,
        "mean": mean,
        "worst": 0,
        **more,
    }


def test_the_last_of_a_repeated_step_counts_and_people_are_averaged(curves, tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [entry(10, 0.1), entry(20, 0.2), entry(10, 0.3), {"step": 25, "loss": 1.0}]
    log.write_text("\n".join(json.dumps(e) for e in lines) + "\n")
    found = curves.read(log)
    assert [(e["step"], e["mean"]) for e in found] == [(10, 0.3), (20, 0.2)]
    assert curves.kinds(found) == {"iso2": [pytest.approx(0.8), pytest.approx(0.7)], "mix": [0.0, 0.0]}


def test_logs_are_kept_and_drawn(curves, tmp_path):
    run, out = tmp_path / "log.jsonl", tmp_path / "out"
    out.mkdir()
    run.write_text("\n".join(json.dumps(entry(k, 0.1 * k, **{"steps4/gain": -0.1})) for k in (1, 2)))
    assert curves.main([f"student={run}", f"L1={run}", "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "training_L1.jsonl",
        "training_curves.png",
        "training_student.jsonl",
    ]
    assert (out / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "training_L1.jsonl").read_text() == run.read_text()


@pytest.mark.parametrize("text", ["not json", '{"step": 1, "loss": 2.0}', ""])
def test_what_is_no_log_is_named(curves, tmp_path, text):
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match="log.jsonl"):
        curves.read(path)
