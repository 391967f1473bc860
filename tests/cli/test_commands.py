"""``mrisr train``, ``doctor`` and ``bench`` as a user sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mrisr.cli import bench
from mrisr.train import teacher

ROOT = Path(__file__).resolve().parents[2]


def test_train_then_resume_then_use(tmp_path, scan, mrisr_command, monkeypatch):
    monkeypatch.setattr(teacher, "PROBES", 12)  # what the residual is measured on need not be exact here
    config = tmp_path / "small.json"
    settings = {"preset": "tiny", "steps": 2, "batch": 1, "patch": 24, "synthetic": 1, "precision": "fp32"}
    config.write_text(json.dumps({**settings, "warmup": 1, "validate_every": 2, "save_every": 1}))
    command = ("train", "--config", config, "--out", tmp_path / "run", "--threads", 1)
    assert mrisr_command(*command).code == 0
    assert {"config.json", "last.pt", "weights.safetensors", "log.jsonl"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
    assert mrisr_command(*command, "--steps", 3).code == 0
    end = mrisr_command(
        "upscale", "-i", scan, "-o", tmp_path / "a.nii", "--factor", 2, "--model",
        tmp_path / "run" / "weights.safetensors",
    )  # fmt: skip
    assert end.code == 0, end.err


def test_train_errors_are_one_line(tmp_path, mrisr_command):
    cases = {
        ("--config", "tiny"): (2, "--out"),
        ("--config", "none", "--dry-run"): (8, "neither a preset"),
        ("--config", "tiny", "--data", tmp_path / "no", "--dry-run"): (None, "no"),
        ("--config", "tiny", "--steps", "0", "--dry-run"): (2, "at least 1"),
    }
    for options, (code, words) in cases.items():
        end = mrisr_command("train", *options)
        assert end.code == (code or end.code) and end.code > 1, end.err
        assert len(end.errors) == 1 and words in end.errors[0]


def test_doctor_reports_every_part_with_reasons(mrisr_command):
    end = mrisr_command("doctor", "--json")
    report = json.loads(end.out)
    assert end.code == 0
    assert {"versions", "cpu", "devices", "engines", "native core", "operators", "weights"} <= set(report)
    assert all(str(finding) for section in report.values() for finding in section.values())
    text = mrisr_command("doctor").out
    assert all(f"\n{section}\n" in text for section in report)


def test_bench_needs_the_checkout(tmp_path, mrisr_command, monkeypatch):
    end = mrisr_command("bench", "--script", "none")
    assert end.code == 2 and "end_to_end" in end.errors[0]
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "mrisr" / "cli" / "bench.py"))
    end = mrisr_command("bench")
    assert end.code == 2 and "source checkout" in end.errors[0]


def test_bench_hands_options_and_exit_code_on(tmp_path, mrisr_command, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "say.py").write_text("import sys; print(sys.argv[1:]); sys.exit(5)")
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "mrisr" / "cli" / "bench.py"))
    end = mrisr_command("bench", "--script", "say", "--", "--repeats", 3)
    assert (end.code, end.out) == (5, "['--repeats', '3']\n")
    end = mrisr_command("bench", "--script", "say", "--script", "say", "--", "--repeats", 3)
    assert end.code == 2 and "options go to one script; name it: mrisr bench --script say -- OPTION" in end.errors[0]


def test_bench_runs_operators_then_the_reference_job(tmp_path, mrisr_command, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    for name in ("ops", "end_to_end"):
        (tmp_path / "benchmarks" / f"{name}.py").write_text(f"print('ran {name}')")
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "mrisr" / "cli" / "bench.py"))
    end = mrisr_command("bench")
    assert end.code == 0 and end.out == "==== ops\nran ops\n==== end_to_end\nran end_to_end\n"


def test_the_command_alone_says_what_is_missing(tmp_path):
    """-S: without site-packages, as where mrisr was installed without what it depends on."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from mrisr.cli.main import main; sys.exit(main())"
    words = [sys.executable, "-S", "-c", program, "upscale", "-i", "a.nii", "-o", "b.nii"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 3 and "Traceback" not in ended.stderr
    assert "which is not installed; install what mrisr depends on" in ended.stderr
