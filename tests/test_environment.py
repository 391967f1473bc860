"""Environment variables: every one that the code reads is in the table, and the page is the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mrisr import environment
from mrisr.errors import MrisrWarning

ROOT = Path(__file__).resolve().parents[1]
READ = re.compile(
    r"""(?:environ(?:\.get|\.setdefault|\.pop)?[\[(]|getenv\()\s*["']([A-Z][A-Z0-9_]*)["']|switch\("([A-Z_]+)"\)"""
)
# Set for what we start or load, but not read by us.
SET = {"OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ORT_DISABLE_TELEMETRY", "TORCHINDUCTOR_CACHE_DIR"}
# Lengthened for benchmarks' children; told to a test's own child; told to Hypothesis.
SET |= {"PYTHONPATH", "NO_TEMPORARY", "HYPOTHESIS_STORAGE_DIRECTORY", "LEDGER", "LEDGER_SECONDS", "PATH"}
SUFFIXES = (".py", ".cpp", ".h", ".cu")
SOURCES = ("mrisr", "kernels", "csrc", "benchmarks", "experiments", "docs", "tests", "setup.py")


def read_variables() -> dict[str, set[str]]:
    """Name -> files that read it."""
    found: dict[str, set[str]] = {}
    for source in SOURCES:
        place = ROOT / source
        files = (
            [place] if place.is_file() else [p for p in place.rglob("*") if p.suffix in (".py", ".cpp", ".h", ".cu")]
        )
        for path in files:
            for names in READ.findall(path.read_text(encoding="utf-8")):
                found.setdefault(next(filter(None, names)), set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_variable_that_is_read_is_in_the_table():
    found = read_variables()
    assert len(found) > 10, "the search finds nothing"
    stated = {variable.name for variable in environment.VARIABLES}
    assert set(found) - SET - stated == set(), {k: v for k, v in found.items() if k not in SET | stated}
    assert stated - set(found) == set(), "nobody reads these"


def test_the_page_is_the_table():
    page = ROOT / "docs" / "environment.md"
    assert page.read_text(encoding="utf-8") == environment.page(), (
        "write it again: python -m mrisr.environment > docs/environment.md"
    )


@pytest.mark.parametrize("stated", ["", "0", "off", "OFF"])
def test_a_cache_that_is_switched_off(stated, monkeypatch):
    monkeypatch.setenv("MRISR_CACHE", stated)
    assert environment.cache_folder() is None


def test_where_the_cache_lies(monkeypatch):
    monkeypatch.delenv("MRISR_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert environment.cache_folder() == Path("/home/anna/.cache/mrisr")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert environment.cache_folder() == Path("/scratch/mrisr")
    monkeypatch.setenv("MRISR_CACHE", "/else")
    assert environment.cache_folder() == Path("/else")


def test_no_home_is_no_error(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MRISR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    assert environment.cache_folder() is None


@pytest.mark.parametrize(("stated", "count"), [("1", 1), ("3", 3), (" 2 ", 2), ("4,2", 4), ("", None), (None, None)])
def test_the_default_thread_count_is_openmps(stated, count, monkeypatch):
    from mrisr.infer.engines.select import thread_count

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if stated is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
    assert thread_count(None) == (environment.cores() if count is None else count)
    assert thread_count(5) == 5


@pytest.mark.parametrize("stated", ["0", "-1", "many", "1.5", "\N{SUPERSCRIPT TWO}", "9" * 5000])
def test_a_thread_count_that_is_none_is_said_and_not_used(stated, monkeypatch):
    from mrisr.infer.engines.select import thread_count

    monkeypatch.setenv("OMP_NUM_THREADS", stated)
    with pytest.warns(MrisrWarning, match="OMP_NUM_THREADS: expected a whole number") as said:
        assert thread_count(None) == environment.cores()
    assert len(said) == 1 and len(str(said[0].message)) < 200
