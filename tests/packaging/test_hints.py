"""What messages say is to be installed."""

from __future__ import annotations

import re
from pathlib import Path


def test_hints_name_what_works_and_extras_that_exist():
    """mrisr is on no index: what is to be installed of it comes from a clone."""
    package = Path(__file__).resolve().parents[2] / "mrisr"
    section = (package.parent / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^([\w-]+) = ", section.partition("\n[")[0], flags=re.MULTILINE))
    hints = {
        (path.name, hint)
        for path in package.rglob("*.py")
        for hint in re.findall(r"pip install ['\"]?([\w.\[\],-]+)", path.read_text(encoding="utf-8"))
    }
    assert len(hints) > 5 and not {hint for hint in hints if hint[1].startswith("mrisr")}
    named = {extra for _, hint in hints for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*)\]", hint)))}
    assert {"web", "cluster"} <= named <= extras
