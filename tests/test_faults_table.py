"""The table of faults names a test for every kind, and every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = {*map(str, range(1, 15)), "Also"}


def rows() -> dict[str, list[tuple[str, str]]]:
    """Kind -> (file, function) of its tests."""
    found = {}
    for line in (ROOT / "benchmarks/results/faults.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        kind = cells[0].strip("| ").split(".")[0]
        if line.startswith("|") and kind in KINDS:
            found[kind] = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cells[-1])
    return found


def test_every_kind_has_its_row_and_every_test_exists():
    table = rows()
    assert set(table) == KINDS and all(table.values())
    missing = [
        f"{kind}: {file}::{name}"
        for kind, tests in table.items()
        for file, name in tests
        if not re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not missing, missing
