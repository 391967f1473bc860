"""The README keeps its promises: one screen, commands that CI runs, links that exist, figures from result files."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import mrisr
from mrisr.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES = 130


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "benchmarks" / "readme_tables.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_it_is_one_screen():
    assert len(README.splitlines()) <= MOST_LINES, "move what is new to docs/ and link it"


def test_every_make_target_is_a_step_of_ci():
    steps = set(re.findall(r"^(?:step|beside) .*?make ([a-z-]+)", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE))
    steps |= set(re.findall(r'^beside .*"make ([a-z-]+)"$', (ROOT / ".ci/run").read_text(), flags=re.MULTILINE))
    wanted = {command.split()[1] for command in commands() if command.startswith("make")}
    assert {"demo", "test"} <= wanted <= steps


def test_every_command_of_mrisr_runs(tmp_path, monkeypatch, capsys):
    """One after the other in a folder with a small scan, as a reader would type them."""
    from mrisr.io import nifti
    from mrisr.volume import Volume

    z, y, x = np.mgrid[-1:1:20j, -1:1:20j, -1:1:20j]
    ball = (100 * np.exp(-2 * (x**2 + y**2 + z**2)) * (1 + 0.3 * np.sin(9 * x))).astype(np.float32)
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    for name in ("scan.nii.gz", "scans/one.nii.gz"):
        nifti.write(Volume(ball, np.diag([1.0, 1.0, 1.0, 1.0])), name)
    ours = [command for command in commands() if not command.startswith("make")]
    assert len(ours) >= 3
    for command in ours:
        words = shlex.split(command)
        assert words[0] == "mrisr" and main(words[1:]) == 0, capsys.readouterr().err
    assert {"sharper.nii.gz", "preview.png", "sharper"} <= {path.name for path in tmp_path.iterdir()}


def test_python_examples_use_real_arguments():
    known = set(inspect.signature(mrisr.upscale).parameters)
    assert blocks("python")
    for block in blocks("python"):
        compile(block, "README.md", "exec")
        used = {name for call in re.findall(r"mrisr\.upscale\((.*)\)", block) for name in re.findall(r"(\w+)=", call)}
        assert used <= known


def test_links_and_pictures_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", README)
    assert len(links) > 10 and [link for link in links if not (ROOT / link).exists()] == []


def test_figures_come_from_the_result_files(tables):
    assert {"README.md", "quality.md", "performance.md", "base.md"} <= {page.name for page in tables.pages()}
    for page, make in tables.pages().items():
        text = page.read_text(encoding="utf-8")
        assert tables.filled(text, make()) == text, f"{page}: run python benchmarks/readme_tables.py"


SPEED = {
    "job": "a job", "date": "today", "commit": "abc",
    "machine": {"cpu": "a CPU", "cores": 2, "gpu": None, "load": 0.1},
    "inputs": {"head": {"seconds": 12.34, "first_call_s": 20, "peak_gb": 1.5, "active_fraction": 0.4,
                        "engine": "openvino", "threads": 2}},
    "rivals": {
        "ours_times_faster_than": {"eager_contiguous": 4.321},
        "job_times_faster_than": {"eager_contiguous": 6.5},
    },
}  # fmt: skip


def test_tables_render_every_kind_of_result(tables, tmp_path):
    assert "Not measured in this version yet" in tables.readme_table(tmp_path)
    assert tables.performance_tables.performance(tmp_path).count("not measured") == 8
    (tmp_path / "end_to_end.json").write_text(json.dumps(SPEED))
    text = tables.performance_tables.performance(tmp_path)
    assert "| head | 12.3 s | 20.0 s | 1.50 GB | 40% | openvino, 2 threads |" in text
    assert "4.32x eager contiguous" in text and "6.50x eager contiguous on the reference job" in text
    gains = {"cubic": (20.0, 0.0), "mrisr": (21.234, 1.234)}
    quality = {
        "cases": {"iso2": "", "new": "2 x 3"}, "volumes": ["a"], "date": "2026-01-01T00:00", "commit": "abc",
        "summary": [
            {"method": name, "cases": {case: {"psnr": psnr, "gain": gain} for case in ("iso2", "new")},
             "mean": {"gain": 1.2}, "worst": {"gain": -0.5}}
            for name, (psnr, gain) in gains.items()
        ],
    }  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(quality))
    assert "| mrisr | +1.23 | +1.23 | +1.20 | -0.50 |" in tables.quality_page(tmp_path)
    table = tables.readme_table(tmp_path)
    assert "| 2 mm, 3D | 20.0 dB | 21.2 dB | +1.2 dB |" in table and "| 2 x 3 | 20.0 dB" in table
    assert "**12 s, 1.5 GB**" in table and "worst case gains -0.5 dB" in table


def test_every_loss_has_its_sentence(tables):
    lines = tables.performance_tables._losses(
        [{"family": "noise", "case": "big", "seconds": {"a": 1}, "times_faster_than": {"torch.randn": 0.5, "x": 2}}]
    )
    assert len(lines) == 1 and "big (0.50)" in lines[0] and "Philox" in lines[0]
    with pytest.raises(ValueError, match="no sentence for noise beside y"):
        tables.performance_tables._losses(
            [{"family": "noise", "case": "big", "seconds": {"a": 1}, "times_faster_than": {"y": 0.5}}]
        )


def test_further_pages_are_optional_and_whole_in_the_cards(tables, tmp_path):
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
