"""Results that are committed are written with --record only, and a partial run leaves the other rows."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(
    p for f in (BENCHMARKS, ROOT / "experiments") for p in f.glob("*.py") if not p.name.startswith("test_")
)


@pytest.fixture
def record():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import record

        yield record
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def written(record, tmp_path, monkeypatch):
    """write(rows, ...) -> what the file holds afterwards."""
    monkeypatch.setattr(record, "circumstances", lambda: {"date": "then", "commit": "abc", "machine": {"cpu": "one"}})

    def write(rows, **same):
        merged = record.merged("ops", rows, ("family", "case"), tmp_path, same)
        return json.loads(record.write("ops", {**same, "rows": merged}, tmp_path).read_text())["rows"]

    return write


def test_a_partial_run_leaves_the_other_rows_and_says_when_they_were_measured(written, record, monkeypatch):
    both = [{"family": "noise", "case": "a", "s": 1}, {"family": "blend", "case": "a", "s": 2}]
    assert written(both) == both
    monkeypatch.setattr(record, "circumstances", lambda: {"date": "now", "commit": "def", "machine": {"cpu": "two"}})
    one = {"family": "noise", "case": "a", "s": 3}
    then = {"date": "then", "commit": "abc", "machine": {"cpu": "one"}}
    assert written([one]) == [{"measured": then, **both[1]}, one]
    assert written([one])[0]["measured"] == then, "when it was measured stays"


def test_rows_of_other_settings_are_not_mixed(written):
    written([{"family": "noise", "case": "a"}], crop=104)
    with pytest.raises(SystemExit, match="was measured with crop 104, this run with 64; delete it or give another"):
        written([{"family": "blend", "case": "a"}], crop=64)


def test_only_record_writes_where_results_are_committed(record):
    import argparse

    for names in ((), ("--out",)):
        parser = argparse.ArgumentParser()
        record.add_place(parser, *names)
        assert parser.parse_args([]).results == record.UNRECORDED
        assert parser.parse_args(["--record"]).results == record.RESULTS
        assert parser.parse_args([*(names or ["--results"]), "x"]).results == Path("x")
    assert record.RESULTS == BENCHMARKS / "results" and record.UNRECORDED.parts[-2] == "out"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_no_script_writes_there_by_itself(script):
    """No default is the folder of committed results; what reads them (README tables, an earlier GPU day) names it."""
    readers = {"record", "readme_tables"}
    if script.stem in readers:
        return
    tree = ast.parse(script.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            found += [ast.unparse(d) for d in (*node.defaults, *node.kw_defaults) if d is not None]
        if isinstance(node, ast.keyword) and node.arg == "default":
            found.append(ast.unparse(node.value))
    assert not [text for text in found if "RESULTS" in text]


def test_a_quick_benchmark_leaves_the_committed_results_alone(tmp_path):
    before = {p: p.stat().st_mtime_ns for p in (BENCHMARKS / "results").rglob("*")}
    command = [sys.executable, str(BENCHMARKS / "ops.py"), "--quick", "--families", "noise"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in (BENCHMARKS / "results").rglob("*")} == before
