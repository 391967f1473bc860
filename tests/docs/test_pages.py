"""Pages keep their promises: commands parse, written ones are current, results are cited, pictures are small."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest

import mrisr
from mrisr.cli import reference
from mrisr.cli.main import build_parser
from mrisr.weights import registry

ROOT = Path(__file__).resolve().parents[2]
DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted((ROOT / "mrisr" / "weights").glob("*.md"))
MOST_BYTES = 150_000
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def site(name: str):
    spec = importlib.util.spec_from_file_location(name, DOCS / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(start: str) -> list[str]:
    """Every command of every fenced block that begins with `start`, comments and variables before it left out."""
    found = []
    for page in PAGES:
        for _, block in FENCE.findall(page.read_text(encoding="utf-8")):
            whole = block.replace("\\\n", "")  # a backslash at the end: the command goes on below
            lines = (re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line.split("  #")[0].strip()) for line in whole.splitlines())
            found += [line for line in lines if line.startswith(start)]
    return list(dict.fromkeys(found))


@pytest.mark.quick
@pytest.mark.parametrize("command", commands("mrisr "))
def test_every_command_on_a_page_parses(command):
    build_parser().parse_args(shlex.split(command)[1:])


def test_every_make_target_and_script_on_a_page_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {command.split()[1] for command in commands("make ")} <= targets
    scripts = {
        m for page in PAGES for m in re.findall(r"\b((?:benchmarks|experiments|docs/site)/\w+\.py)", page.read_text())
    }
    assert len(scripts) > 10 and [script for script in scripts if not (ROOT / script).is_file()] == []


@pytest.mark.quick
def test_python_on_a_page_uses_arguments_that_exist():
    known, used = set(inspect.signature(mrisr.upscale).parameters), set()
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            for node in ast.walk(ast.parse(block)) if language == "python" else ():
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "mrisr.upscale":
                    used |= {keyword.arg for keyword in node.keywords}
    assert len(used) > 4 and used - known == set()


@pytest.mark.quick
def test_the_command_reference_is_the_parsers():
    written = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert written == reference.page(), "write it again: python -m mrisr.cli.reference > docs/commands.md"
    assert "(needed)" in written and "### mrisr serve dicom" in written and "%(" not in written


def test_the_picture_of_the_house_is_what_its_script_draws():
    assert (DOCS / "pictures" / "architecture.svg").read_text(encoding="utf-8") == site("architecture").drawing()


def test_every_result_file_has_a_writer_on_the_page_of_results():
    """A name in the first column, or a page or card that cites the file."""
    table = (DOCS / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", table, flags=re.MULTILINE)
    named = [name for row, _ in rows for name in re.findall(r"`([^`]+)`", row)]
    waiting = {name for row, how in rows if "where it has run" in how for name in re.findall(r"`([^`]+)`", row)}
    files = [p.relative_to(RESULTS) for p in RESULTS.rglob("*") if p.is_file()]
    unknown = [
        str(f) for f in files if not any(f.match(n) or (f.suffix and str(f.with_suffix("")) == n) for n in named)
    ]
    assert unknown == [], "say in docs/results.md which script writes them, or delete them"
    stale = [n for n in named if n not in waiting and not any(f.match(n) or str(f.with_suffix("")) == n for f in files)]
    assert stale == [], "docs/results.md names files that are gone"


@pytest.mark.parametrize(
    "name",
    ["comparison", "demo", "denoise", "denoise_synthetic", "evaluation", "held_out", "resolution_sweep", "safety",
     "your_data"],
)  # fmt: skip
def test_what_pages_show_of_the_shipped_weights_is_of_them(name):
    """Quality as it is today; what is cited as a finding about other weights names them on its page."""
    assert registry.load("base").sha256[:12] in (RESULTS / f"{name}.json").read_text(encoding="utf-8")


def test_pictures_are_small():
    pictures = [p for folder in (DOCS, RESULTS) for p in folder.rglob("*") if p.suffix in (".png", ".svg", ".jpg")]
    assert len(pictures) > 5
    assert {str(p.relative_to(ROOT)): size for p in pictures if (size := p.stat().st_size) > MOST_BYTES} == {}


def test_nothing_cites_what_is_not_in_the_repository():
    cited = re.compile(r"\b(?:DESIGN|PHYSICS|PERFORMANCE|EVALUATION|STYLE)(?:\.md)?\b")
    sources = [
        p for f in ("mrisr", "kernels", "csrc", "benchmarks", "experiments", "docs") for p in (ROOT / f).rglob("*")
    ]
    found = [
        f"{p.relative_to(ROOT)}: {m.group()}"
        for p in sources
        if p.suffix in (".py", ".h", ".cpp", ".cu", ".md") and "results" not in p.parts
        for m in cited.finditer(p.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.quick
def test_every_link_of_the_site_leads_somewhere(tmp_path):
    build = site("build")
    assert build.gather(tmp_path) == []
    assert (tmp_path / "models" / "base.md").is_file() and (tmp_path / "results" / "ops.json").is_file()
    assert "](results/ops.json)" in (tmp_path / "performance.md").read_text(encoding="utf-8")
    (tmp_path / "howto" / "new.md").write_text("# New\n")
    assert "howto/new" in build.add_unlisted(tmp_path) and "tutorial" not in build.add_unlisted(tmp_path)
    assert "\nhowto/new\n" in (tmp_path / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        "<link href='https://a.example/i.png' rel='icon'>",
        '<img alt="x" src="http://a.example/i.png">',
        "@import 'https://fonts.example/a.css';",
        "a { background: url(https://a.example/b.png) }",
    ],
)
def test_a_page_that_loads_from_the_network_is_found(text, tmp_path):
    build = site("build")
    page = tmp_path / ("page.css" if "{" in text or "import" in text else "page.html")
    page.write_text(text)
    assert len(build.loaded_from_elsewhere(tmp_path)) == 1
    page.write_text(
        '<a href="https://arxiv.org">paper</a><img src="_images/a.png"><link rel="canonical" href="https://a.b/">'
    )
    assert build.loaded_from_elsewhere(tmp_path) == []


@pytest.mark.slow("the whole of the tutorial's template; its arguments and links are in `make test`")
def test_the_tutorial_runs_and_draws_its_pictures(tmp_path):
    pytest.importorskip("nilearn", reason="the tutorial's template comes with nilearn (extra demo)")
    runner = site("run_page")
    runner.run(DOCS / "tutorial.md", tmp_path)
    made = {p.name for p in tmp_path.glob("*.png")}
    shown = set(re.findall(r"\(pictures/(tutorial_\w+\.png)\)", (DOCS / "tutorial.md").read_text(encoding="utf-8")))
    assert made == shown and len(shown) == 2 and (tmp_path / "sharper.nii.gz").is_file()


def test_the_examples_of_compile_and_export_run(tmp_path, capsys):
    names = site("run_page").run(DOCS / "howto" / "kernels.md", tmp_path)
    assert "torch.export.export" in (DOCS / "howto" / "kernels.md").read_text(encoding="utf-8")
    assert "mrisr.rms_norm" in capsys.readouterr().out and names["program"] is not None


def test_a_page_says_which_line_failed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# T\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as raised:
        site("run_page").run(page, tmp_path)
    assert raised.traceback[-1].lineno + 1 == 11 and sys.exc_info() is not None
