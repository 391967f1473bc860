"""The outcome of the protocol as JSON (everything) and Markdown (the tables), written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from mrisr.environment import commit, machine, versions
from mrisr.errors import OutputError
from mrisr.evaluate.baselines import BASELINES
from mrisr.evaluate.cases import CASES
from mrisr.evaluate.protocol import Outcome, rows_as_dicts
from mrisr.io.atomic import check_target, replacing

FORMAT = "mrisr-evaluation/1"
JSON_NAME, MARKDOWN_NAME = "evaluation.json", "evaluation.md"
CHI2_RANGE, TISSUE_LIMIT = (0.9, 1.1), 0.01
SURVIVAL, GAIN_FLOOR = 0.99, -0.02


def circumstances(format: str, settings: dict) -> dict:
    """What every report begins with: its format, when, by which commit, on what, and the settings to repeat it."""
    return {
        "format": format,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
    }


def build_report(outcome: Outcome, settings: dict) -> dict:
    """Everything needed to read the numbers, and to repeat them: JSON-ready."""
    rows = rows_as_dicts(outcome.rows)
    return {
        **circumstances(FORMAT, settings),
        "cases": {name: str(CASES[name]) for name in _in_order(rows, "case") if name in CASES},
        "volumes": outcome.volumes,
        "skipped": outcome.skipped,
        "summary": summarise(rows),
        "rows": rows,
    }


def summarise(rows: Sequence[dict]) -> list[dict]:
    """Per method: the mean over volumes in each case, the mean of the cases (each counts once), the worst
    row."""
    summary = []
    for method in _in_order(rows, "method"):
        own = [row for row in rows if row["method"] == method]
        cases = {}
        for case in _in_order(own, "case"):
            inside = [row for row in own if row["case"] == case]
            cases[case] = {
                "volumes": len(inside),
                **{key: _mean(row[key] for row in inside) for key in _AVERAGED},
            }
        worst = min(own, key=lambda row: row["gain"])
        summary.append(
            {
                "method": method,
                "cases": cases,
                "mean": {key: _mean(case[key] for case in cases.values()) for key in _AVERAGED},
                "worst": {key: worst[key] for key in ("volume", "case", "gain")},
            }
        )
    return summary


_AVERAGED = ("psnr", "gain", "ssim", "hfen", "nmi", "fsc_area", "fsc_beyond", "fsc_gain")
_AVERAGED += ("chi2", "intensity_shift", "tissue_change", "seconds")


def check_folder(folder: str | os.PathLike, force: bool, stem: str = "evaluation") -> Path:
    """The output folder, made if missing; OutputError where a report is there already and `force` is not
    set."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror or error}); choose another folder") from error
    for name in (f"{stem}.json", f"{stem}.md"):
        check_target(folder / name, force=force)
    return folder


def write_report(report: dict, folder: Path, *, force: bool = False) -> list[Path]:
    """evaluation.json and evaluation.md in `folder`; returns their paths."""
    return write_pair(folder, "evaluation", report, render_markdown(report), force=force)


def write_pair(folder: Path, stem: str, content: dict, markdown: str, *, force: bool = False) -> list[Path]:
    """`content` as folder/stem.json and `markdown` as folder/stem.md; returns their paths."""
    # NaN (an empty FSC shell) is not JSON: null says the same.
    text = json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n"
    text = re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text)  # a curve is one line
    paths = []
    for name, content in ((f"{stem}.json", text), (f"{stem}.md", markdown)):
        with replacing(folder / name, force=force) as beside:
            beside.write_text(content, encoding="utf-8", errors="replace")
        paths.append(folder / name)
    return paths


# --- Markdown -----------------------------------------------------------------------------------------------


def render_markdown(report: dict) -> str:
    """The report as Markdown, from its JSON form alone."""
    parts = ["# Evaluation\n", _provenance(report), _skipped(report)]
    parts += ["\n## PSNR gain over cubic, dB\n", _overview(report, "gain", "{:+.2f}", worst=True)]
    parts += ["\n## PSNR, dB\n", _overview(report, "psnr", "{:.2f}")]
    for case in _in_order(report["rows"], "case"):
        parts += [f"\n## {report['cases'].get(case, case)}\n", _case_table(report, case)]
    parts += ["\n## Each volume: PSNR, dB\n", _per_volume(report)]
    parts += ["\n## Safety\n", _safety(report), _NOTES]
    return "\n".join(part for part in parts if part) + "\n"


def render_overview(report: dict) -> str:
    """The one table that a terminal shows: gain over cubic per case, mean and worst, and what was skipped."""
    return "\n".join(filter(None, [_overview(report, "gain", "{:+.2f}", worst=True), _skipped(report)]))


_NOTES = "\n" + (
    "Metrics are taken inside the head mask; the data range is the 99.9th percentile of the reference; no "
    "image is rescaled. SSIM: 3D, Gaussian sigma 1.5, window 11. HFEN: Laplacian of Gaussian 1.5, "
    "relative to the reference (0 is perfect). NMI: 1 to 2. FSC beyond: mean Fourier shell correlation "
    "over the frequencies that the scan did not acquire, and its gain over cubic. chi2: residual of the "
    "re-degraded output per degree of freedom (noisy cases; 1 is noise, 0 a copy of the noise). Shift: "
    "change of the mean intensity. Tissue: largest volume change of three intensity classes. s: seconds "
    "of the method; the first trial of a model loads it. The reference of a case with a bias field "
    "carries that field. LPIPS is not computed (its weights are not shipped). The scans are simulated "
    "from the references by a known operator."
)


def _provenance(report: dict) -> str:
    m, choices = report["machine"], report["settings"]
    settings = [f"{key} {words_of(value)}" for key, value in choices.items() if value not in (None, [])]
    lines = [
        f"{len(report['volumes'])} volume(s): {', '.join(report['volumes'])}",
        f"settings: {', '.join(settings)}",
        f"machine: {m['cpu']}, {m['cores']} cores, {m['threads']} threads, GPU {m['gpu'] or 'none'}",
        f"versions: {', '.join(f'{name} {number}' for name, number in report['versions'].items())}",
        f"commit {report['commit'] or 'unknown'}, {report['date']}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def words_of(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _skipped(report: dict) -> str:
    skipped = report["skipped"]
    if not skipped:
        return ""
    lines = [f"  - `{s['file']}` (case: {s['case']}): {s['reason']}" for s in skipped]
    return "\n".join([f"- **{len(skipped)} skipped**, not in any number below:", *lines])


def _overview(report: dict, key: str, form: str, worst: bool = False) -> str:
    cases = _in_order(report["rows"], "case")
    head = ["method", *cases, "mean", *(["worst"] if worst else [])]
    body = []
    for entry in report["summary"]:
        cells = [entry["cases"].get(case, {}).get(key) for case in cases]
        line = [f"`{entry['method']}`", *(_show(c, form) for c in cells), _show(entry["mean"][key], form)]
        if worst:
            w = entry["worst"]
            line.append(f"{form.format(w['gain'])} ({w['volume']}, {w['case']})")
        body.append(line)
    return _table(head, body)


def _case_table(report: dict, case: str) -> str:
    head = ["method", "PSNR", "gain", "SSIM", "HFEN", "NMI", "FSC beyond", "FSC gain"]
    head += ["chi2", "shift %", "tissue %", "s"]
    body = []
    for entry in report["summary"]:
        if case not in entry["cases"]:
            continue
        c = entry["cases"][case]
        body.append(
            [
                f"`{entry['method']}`",
                _show(c["psnr"], "{:.2f}"),
                _show(c["gain"], "{:+.2f}"),
                _show(c["ssim"], "{:.4f}"),
                _show(c["hfen"], "{:.3f}"),
                _show(c["nmi"], "{:.3f}"),
                _show(c["fsc_beyond"], "{:.3f}"),
                _show(c["fsc_gain"], "{:+.3f}"),
                _show(c["chi2"], "{:.2f}"),
                _show(c["intensity_shift"], "{:+.2%}").replace("%", ""),
                _show(c["tissue_change"], "{:.2%}").replace("%", ""),
                _show(c["seconds"], "{:.1f}"),
            ]
        )
    return _table(head, body)


def _per_volume(report: dict) -> str:
    methods = _in_order(report["rows"], "method")
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for row in report["rows"]:
        cells.setdefault((row["volume"], row["case"]), {})[row["method"]] = row["psnr"]
    body = [[*key, *(_show(cell.get(m), "{:.2f}") for m in methods)] for key, cell in cells.items()]
    return _table(["volume", "case", *methods], body)


def _safety(report: dict) -> str:
    networks = [row for row in report["rows"] if row["method"] not in (*BASELINES, "linear")]
    lines = [alarm for row in networks for alarm in alarms(row)]
    if not networks:
        text = "No network among the methods: interpolation is not held to the targets."
    elif lines:
        text = f"{len(lines)} findings outside the targets:\n\n" + "\n".join(f"- {line}" for line in lines)
    else:
        text = "Every network within every target."
    tested = [row for row in report["rows"] if row.get("lesions")]
    if not tested:
        return text + "\n\nThe lesion test was not run (`--lesions`)."
    head = [
        "volume",
        "case",
        "method",
        "inserted",
        "survived",
        "visible",
        "recovered",
        "ghosts",
        "phantoms",
        "invented",
    ]
    body = [
        [row["volume"], row["case"], f"`{row['method']}`", *(str(row["lesions"][key]) for key in head[3:])]
        for row in tested
    ]
    return f"{text}\n\n{_table(head, body)}"


def alarms(row: dict) -> list[str]:
    """Which safety targets a row misses, in words."""
    where = f"{row['method']}, {row['volume']}, {row['case']}"
    lines = []
    if row["gain"] < GAIN_FLOOR:
        lines.append(f"{where}: loses {-row['gain']:.2f} dB to cubic")
    if row["chi2"] is not None and not CHI2_RANGE[0] <= row["chi2"] <= CHI2_RANGE[1]:
        lines.append(f"{where}: chi2 {row['chi2']:.2f} (target {CHI2_RANGE[0]} to {CHI2_RANGE[1]})")
    if row["tissue_change"] > TISSUE_LIMIT:
        lines.append(f"{where}: tissue volume changes by {row['tissue_change']:.1%} (target < {TISSUE_LIMIT:.0%})")
    lesions = row.get("lesions")
    if lesions and lesions["inserted"]:
        if lesions["survived"] < SURVIVAL * lesions["inserted"]:
            lines.append(f"{where}: {lesions['survived']} of {lesions['inserted']} lesions survive")
        if lesions["recovered"] < lesions["visible"]:
            lines.append(f"{where}: {lesions['recovered']} of {lesions['visible']} visible lesions keep 80 % contrast")
        if lesions["ghosts"] or lesions["phantoms"] or lesions["invented"]:
            lines.append(
                f"{where}: {lesions['ghosts']} ghosts, {lesions['phantoms']} phantoms and {lesions['invented']} "
                "signatures of a lesion where none was"
            )
    return lines


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _show(value, form: str) -> str:
    return "-" if value is None or not np.isfinite(value) else form.format(value)


def _in_order(rows: Sequence[dict], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _mean(values) -> float | None:
    numbers = [v for v in values if v is not None]
    return round(float(np.mean(numbers)), 5) if numbers else None


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
