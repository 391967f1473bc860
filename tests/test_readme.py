"""The README keeps its promises: commands parse or run, exit codes and figures are the program's own."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

import mrisr
from mrisr.cli.main import EXIT_CODES, build_parser, main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FAST = ("mrisr doctor", "mrisr doctor --json", "mrisr train --list", "mrisr train --config tiny --dry-run")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


def test_there_are_commands_to_check():
    assert {"mrisr", "make"} == {command.split()[0] for command in commands()}
    assert set(FAST) <= set(commands())


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("mrisr")])
def test_every_command_parses(command):
    build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", FAST)
def test_fast_commands_run(command, capsys):
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    wanted = {command.split()[1] for command in commands() if command.startswith("make")}
    assert wanted and wanted <= targets


def test_exit_codes_are_the_programs():
    rows = dict(re.findall(r"^\| (\d+) \| ([^|]+?) \|$", README, flags=re.MULTILINE))
    assert {int(code): text for code, text in rows.items()} == EXIT_CODES


def test_python_examples_use_real_arguments():
    known = set(inspect.signature(mrisr.upscale).parameters)
    for block in blocks("python"):
        compile(block, "README.md", "exec")
        used = {name for call in re.findall(r"mrisr\.upscale\((.*)\)", block) for name in re.findall(r"(\w+)=", call)}
        assert used <= known


def test_links_and_pictures_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_figures_come_from_the_result_files():
    script = ROOT / "benchmarks" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", script)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.readme(README) == README, "run: python benchmarks/readme_tables.py"


def test_tables_render_every_kind_of_result(tmp_path):
    script = ROOT / "benchmarks" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", script)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.measured(tmp_path).count("not measured in this version yet") == 3
    speed = {
        "job": "a job", "date": "today", "commit": "abc",
        "machine": {"cpu": "a CPU", "cores": 2, "gpu": None, "load": 0.1},
        "inputs": {"head": {"seconds": 12.34, "first_call_s": 20, "peak_gb": 1.5, "active_fraction": 0.4,
                            "engine": "openvino", "threads": 2}},
        "rivals": {
            "ours_times_faster_than": {"eager_contiguous": 4.321},
            "job_times_faster_than": {"eager_contiguous": 6.5},
        },
    }  # fmt: skip
    (tmp_path / "end_to_end.json").write_text(json.dumps(speed))
    text = tables.measured(tmp_path)
    assert "| head | 12.3 s | 20.0 s | 1.50 GB | 40% | openvino, 2 threads |" in text
    assert "4.32x eager contiguous" in text and "6.50x eager contiguous on the reference job" in text
    quality = {
        "cases": {"iso2": ""}, "volumes": {"a": {}}, "date": "2026-01-01T00:00", "commit": "abc",
        "summary": [
            {"method": "mrisr", "cases": {"iso2": {"gain": 1.234}}, "mean": {"gain": 1.2}, "worst": {"gain": -0.5}}
        ],
    }  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(quality))
    assert "| mrisr | +1.23 | +1.20 | -0.50 |" in tables.measured(tmp_path)


def load_tables():
    script = ROOT / "benchmarks" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", script)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    return tables


def test_the_model_cards_hold_the_measured_tables():
    tables = load_tables()
    cards = [name for name in tables.CARDS if (tables.WEIGHTS / f"{name}.md").is_file()]
    assert "base" in cards
    for name in cards:
        card = (tables.WEIGHTS / f"{name}.md").read_text(encoding="utf-8")
        assert tables.filled(card, tables.card(name)) == card, "run: python benchmarks/readme_tables.py"


def test_further_pages_are_optional_and_whole_in_the_cards(tmp_path):
    tables = load_tables()
    assert tables.optional(tmp_path) == [] and tables.card("teacher-small", tmp_path) == "Not measured yet."
    page = "# T\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\ntext\n\n| c |\n|---|\n| 3 |\n\n| d |\n|---|\n"
    for name in tables.PAGES:
        (tmp_path / f"{name}.md").write_text(page)
    assert tables.tables(page) == ["| a | b |\n|---|---|\n| 1 | 2 |", "| c |\n|---|\n| 3 |", "| d |\n|---|"]
    card = tables.card("base", tmp_path)
    assert card.count("| a | b |") == 5 and card.count("| c |") == 4 and card.count("| d |") == 3
    results = {
        "comparison": {
            "summary": [{"method": "mean", "mean": {"gain": 1.5}}, {"method": "L1", "mean": {"gain": 1.25}}],
            "verdicts": [{"met": True}, {"met": False}],
        },
        "resolution_sweep": {
            "rows": [
                {"inside": True, "people": [{"gain": 0.5, "warned": False}, {"gain": 0.2, "warned": False}]},
                {"inside": True, "people": [{"gain": 0.5, "warned": False}, {"gain": -0.2, "warned": False}]},
                {"inside": False, "people": [{"gain": -1, "warned": True}, {"gain": 1, "warned": True}]},
            ]
        },
        "safety": {
            "bars": [
                {"method": "cubic", "bar": "tissue", "found": "9 %", "met": None},
                {"method": "mrisr", "bar": "lesions", "found": "99 %", "met": True},
                {"method": "mrisr", "bar": "tissue", "found": "2 %", "met": False},
            ]
        },
        "guidance": {},
    }
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    text = "\n".join(tables.optional(tmp_path))
    assert "mean +1.50, L1 +1.25; 1 of 2 bars met" in text
    assert "1 of 2 rows inside" in text and "least gain -0.20 dB" in text and "of 1 outside, 1 warn." in text
    assert "lesions: 99 %; tissue: 2 %. Bars missed: tissue." in text
    assert "([page](benchmarks/results/guidance.md))" in text
