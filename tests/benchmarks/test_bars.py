"""The bars are judged by the result files, and what is missed is said as plainly as what is met."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bars():
    spec = importlib.util.spec_from_file_location("bars", BENCHMARKS / "bars.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(method, tissue, **lesions):
    counted = {"survived": 10, "recovered": 9, "ghosts": 0, "phantoms": 0, "invented": 0}
    return {"method": method, "tissue_change": tissue, "chi2": 1.0, "lesions": {**counted, **lesions}}


def test_without_files_there_is_no_table(bars, tmp_path):
    assert bars.table(tmp_path) == ""


def test_what_is_met_and_what_is_missed(bars, tmp_path):
    rows = [row("mrisr", 0.004), row("mrisr", 0.03, ghosts=1), row("denoise", 0, survived=20, recovered=17)]
    safety = {"bars": [], "rows": rows}
    (tmp_path / "safety.json").write_text(json.dumps(safety))
    evaluation = {"volumes": ["a", "b"], "summary": [
        {"method": "mrisr", "mean": {"gain": 1.9}, "worst": {"gain": 0.9, "case": "mix"}}]}  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    text = bars.table(tmp_path)
    assert "| mean gain of the cases >= +1.8 dB | +1.90 dB on the 2 held-out people | yes |" in text
    assert "| no case below +1.0 dB | +0.90 dB (mix) | **no** |" in text
    assert "| tissue volume changes by < 1 % in the mean | 1.70 % | **no** |" in text
    assert "| no lesion where none was | 1 ghosts, 0 phantoms, 0 invented | **no** |" in text
    assert "`denoise=1`: lesion survival unchanged | 20 of 20 | yes |" in text
    assert "as many lesions keep their contrast | 17 of 18 | **no** |" in text


@pytest.mark.parametrize("gain, apart, met", [(1.28, "-0.05", "yes"), (1.3, "-0.07", "**no**")])
def test_the_deterministic_network_is_the_yardstick_of_its_equal(bars, tmp_path, gain, apart, met):
    """Of the general network, whatever those gain that began with the L1 network and learnt longer."""
    means = {"base-v1.safetensors": 1.116, "general.safetensors": 1.231, "base": 1.43, "L1.safetensors": gain}
    models = {name: {"gain_db": {"mean": mean}} for name, mean in means.items()}
    (tmp_path / "held_out.json").write_text(json.dumps({"models": models}))
    (line,) = [line for line in bars.table(tmp_path).splitlines() if "L1 network of equal size" in line]
    assert f"| {apart} dB (the general network, version 3, +1.23 dB, L1 {gain:+.2f} dB;" in line
    assert line.endswith(f"learnt on: +1.43 dB) | {met} |")


def test_what_an_aim_depends_on_is_neither_met_nor_missed(bars, tmp_path):
    case = {"noisy": {"psnr": 30.0}, "iso2n": {"psnr": 25.0}}
    denoise = {"rows": [{"method": "denoise", "chi2": 1.0}],
               "summary": [{"method": name, "cases": case} for name in ("mrisr", "denoise")]}  # fmt: skip
    limit = {"rows": [{"case": "iso2n", "ceiling": 0.2}, {"case": "iso2n", "ceiling": 0.4}]}
    for name, result in (("denoise", denoise), ("denoise_ceiling", limit)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    assert "without `denoise`) | 0.30 dB, 0.40 at most | - |" in bars.table(tmp_path)


@pytest.mark.parametrize("now, text", [(1.43, "+0.31 dB by a network for 2D"), (1.40, "+0.28 dB by a network for 2D")])
def test_what_the_student_gained_in_place_of_a_teacher(bars, tmp_path, now, text):
    means = {"base-v1.safetensors": 1.116, "general.safetensors": 1.231, "base": now}
    models = {name: {"gain_db": {"mean": mean}} for name, mean in means.items()}
    (tmp_path / "held_out.json").write_text(json.dumps({"models": models}))
    (line,) = [line for line in bars.table(tmp_path).splitlines() if "better than version 1" in line]
    assert text in line and "+0.11 dB by one for all" in line and line.endswith("| yes |") == (now == 1.43)


def test_a_race_that_was_run_otherwise_and_the_wait_for_pairs(bars, tmp_path):
    sizes = [("large", 8e6, 0.2, 90), ("third", 1e6, 0.4, 900), ("student", 3e6, 0.5, 300)]
    rows = [{"size": s, "parameters": p, "gains": {"mean": g}, "steps": n, "gflop_per_s": 99.6} for s, p, g, n in sizes]
    (tmp_path / "size_race.json").write_text(json.dumps({"minutes": 20.0, "rows": rows}))
    waits = [(True, 0.004, 1.1), (False, 0.27, 1.5)]
    rows = [{"prefetch": p, "waiting_share": w, "seconds_per_step": s} for p, w, s in waits]
    (tmp_path / "pair_wait.json").write_text(json.dumps({"rows": rows}))
    text = bars.table(tmp_path)
    assert "20 min each: 1.0 M +0.40 dB (900 steps, 100 GFLOP/s), 3.0 M +0.50 dB" in text
    assert "normalisations were not raced | **no** |" in text
    assert "| 0.4% of a step of 1.10 s; on one core 27% of 1.50 s | yes |" in text


@pytest.mark.parametrize("backward, met", [(0.5, "yes"), (0.4, "**no**")])
def test_what_of_a_step_is_convolutions(bars, tmp_path, backward, met):
    row = {"convolutions_forward": 0.25, "convolutions_backward": backward, "precision": "fp32"}
    rows = [{"prefetch": False, **row, "convolutions_backward": 0.1}, {"prefetch": True, **row}]
    (tmp_path / "step_shares.json").write_text(json.dumps({"rows": rows, "machine": {"cpu": "that one"}}))
    assert f"| {0.25 + backward:.0%} in fp32 on that one, pairs on a second core | {met} |" in bars.table(tmp_path)


@pytest.mark.parametrize("found, text", [(2.02, "2 of 2, to 1.0% at worst | yes"), (1.5, "1 of 2, to 25.0% at worst")])
def test_whether_zero_filled_scans_are_recognised(bars, tmp_path, found, text):
    people = [{"acquired_mm": [2.0, 1.0], "found_mm": [width, 1.0]} for width in (2.0, found)]
    rows = [{"group": "zero-filled", "people": people}, {"group": "isotropic", "people": [{}]}]
    (tmp_path / "resolution_sweep.json").write_text(json.dumps({"rows": rows}))
    assert text in bars.table(tmp_path)
