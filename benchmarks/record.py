"""Result files: what was measured, on what, by which commit; written whole or not at all."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

from mrisr import environment

RESULTS = Path(__file__).resolve().parent / "results"


def write(name: str, content: dict, folder: Path = RESULTS) -> Path:
    """Write `content` and the circumstances to folder/name.json and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    beside = path.with_suffix(".json.new")
    beside.write_text(json.dumps({**content, **circumstances()}, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)
    return path


def circumstances() -> dict:
    """Machine (make and size, no names) and the load on it, versions, date and commit."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "machine": {**environment.machine(), "load": round(os.getloadavg()[0], 1)},
        "versions": environment.versions(),
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "commit": environment.commit(),
    }
