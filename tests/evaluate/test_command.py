"""`mrisr evaluate` from the arguments to the files."""

from __future__ import annotations

import argparse
import json

import pytest

from mrisr.cli import evaluate
from mrisr.errors import InputError, MrisrWarning, OutputError, UsageError


def run(*arguments):
    parser = argparse.ArgumentParser()
    evaluate.add_parser(parser.add_subparsers())
    return evaluate.run(parser.parse_args(["evaluate", *map(str, arguments)]))


def test_a_folder_gives_tables_and_pictures(scans, tmp_path, capsys):
    (scans / "broken.nii").write_bytes(b"x")
    out = tmp_path / "out"
    with pytest.warns(MrisrWarning, match="broken"):
        code = run(scans, "-o", out, "--cases", "iso2", "--methods", "cubic,zerofill", "--lesions")
    assert code == 0
    names = {p.name for p in out.iterdir()}
    assert names == {"evaluation.json", "evaluation.md", "one_iso2.png", "two_iso2.png"}
    assert (out / "one_iso2.png").read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert "2 volume(s) evaluated, 1 skipped" in captured.out and "zerofill" in captured.out
    assert captured.err == ""  # not a terminal: no bars
    report = json.loads((out / "evaluation.json").read_text())
    assert report["rows"][0]["lesions"]["inserted"] > 0
    with pytest.raises(OutputError, match="--force"):
        run(scans, "-o", out, "--methods", "cubic")


def test_linear_regression_trains_on_other_files(scans, tmp_path):
    code = run(
        scans / "two.nii", "-o", tmp_path / "out", "--cases", "iso2", "--methods", "linear",
        "--train-on", scans / "one.nii.gz", "--no-pictures",
    )  # fmt: skip
    assert code == 0


def test_wrong_names_fail_before_any_work(scans, tmp_path):
    with pytest.raises(UsageError, match="case 'iso7'"):
        run(scans, "-o", tmp_path / "out", "--cases", "iso7")
    with pytest.raises(UsageError, match="method 'magic'"):
        run(scans, "-o", tmp_path / "out", "--methods", "magic")
    with pytest.raises(UsageError, match="--cases"):
        run(scans, "-o", tmp_path / "out", "--cases", ",")
    assert not (tmp_path / "out").exists()


def test_nothing_usable_leaves_no_report(tmp_path):
    (tmp_path / "broken.nii").write_bytes(b"x")
    with pytest.warns(MrisrWarning), pytest.raises(InputError, match="not one volume"):
        run(tmp_path, "-o", tmp_path / "out", "--cases", "iso2", "--methods", "cubic")
    assert not list((tmp_path / "out").iterdir())
