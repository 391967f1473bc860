"""Result files: what was measured, on what, by which commit; written whole or not at all."""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path

from mrisr import environment
from mrisr.io.atomic import replacing

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"  # what is committed: written with --record only
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")  # of a CPU, that times depend on
UNRECORDED = ROOT / "out" / "benchmarks"


def add_place(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add where results go, as `args.results`: out/benchmarks, a folder given, or with --record the committed one."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        *(names or ("--results",)),
        dest="results",
        type=Path,
        default=UNRECORDED,
        metavar="DIR",
        help=f"folder of the results (default: {UNRECORDED.relative_to(ROOT)})",
    )
    place.add_argument(
        "--record",
        dest="results",
        action="store_const",
        const=RESULTS,
        help=f"write into {RESULTS.relative_to(ROOT)}, whose results are committed",
    )


def merged(name: str, rows: list[dict], key: tuple[str, ...], folder: Path, same: dict | None = None) -> list[dict]:
    """`rows` and, of those that folder/name.json holds already, the ones that were not measured again.

    A row that stays carries when, where and by which commit it was measured, as `measured`.

    Args:
        key: the fields that tell rows apart.
        same: fields of the file and what they have to be for its rows to belong beside these. Others are an error: a
            run with other settings goes into another folder, or replaces all (delete the file first).
    """
    path = folder / f"{name}.json"
    earlier, stamp = previous(name, folder)
    if not earlier:
        return rows
    for field, value in (same or {}).items():
        if earlier.get(field) != value:
            raise SystemExit(
                f"{path}: was measured with {field} {earlier.get(field)!r}, this run with {value!r}; delete it or give "
                "another folder"
            )
    new = {tuple(row[k] for k in key) for row in rows}
    return [{"measured": stamp, **row} for row in earlier["rows"] if tuple(row[k] for k in key) not in new] + rows


def previous(name: str, folder: Path) -> tuple[dict, dict]:
    """(what folder/name.json holds, or {}; when, where and by which commit it was measured)."""
    path = folder / f"{name}.json"
    if not path.exists():
        return {}, {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    return earlier, {field: earlier[field] for field in ("date", "commit", "machine") if field in earlier}


def write(name: str, content: dict, folder: Path = UNRECORDED) -> Path:
    """Write `content` and the circumstances to folder/name.json and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    with replacing(path, force=True) as beside:
        beside.write_text(json.dumps({**content, **circumstances()}, indent=2) + "\n", encoding="utf-8")
    return path


def circumstances() -> dict:
    """Machine (make and size, no names), what its processor has and the load on it, versions, date and commit."""
    has = environment.processor()[1]
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "machine": {
            **environment.machine(),
            "features": [name for name in FEATURES if name in has],
            "load": round(os.getloadavg()[0], 1),
        },
        "versions": environment.versions(),
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "commit": environment.commit(),
    }
