"""The report of `mrisr evaluate --safety`: lesions, tissue, chi-squared and the worth of the spread, with bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mrisr.evaluate.baselines import BASELINES
from mrisr.evaluate.protocol import Outcome, rows_as_dicts
from mrisr.evaluate.report import CHI2_RANGE, SURVIVAL, TISSUE_LIMIT, circumstances, words_of

FORMAT = "mrisr-safety/1"
STEM = "safety"
COVERAGE_SLACK = 0.05  # of the 90 % interval on people that it was not calibrated on

CHI2_NOTE = (
    "chi2: where k-space was cut along all axes, the measured band of the scan is left exactly as it was measured, its "
    "noise included, so the rescanned answer is the scan and the residual is 0 by construction, as it is of "
    "zero-filling. That says that nothing measured was contradicted, and that nothing was denoised: the target of 0.9 "
    "to 1.1 is missed, being that of a method which replaces the measured band by an estimate of it. Across slices the "
    "residual is free: above 1.1 the answer departs from the scan by more than its noise, and a stated point spread "
    "(`mrisr-stated`, consistency on) is what takes that away."
)
LESION_NOTE = (
    "Lesions: bright and dark spheres of 2 to 5 mm and 15, 30 and 60 % of the median head, never part of training, put "
    "into the head and taken out again, scanned with the same noise. survived: at least half the amplitude that the "
    "scan holds; visible: at least 3 sigma in the scan (all, where it has no noise); recovered: visible, and at least "
    "80 %. ghosts: responses away from every lesion; phantoms: blobs of a lesion's size in the lesion-free answer that "
    "the truth has not; invented: signatures of the visible lesions, at half strength or more, in the rescanned answer "
    "to the scan without them and not in that scan. Tissue: largest volume change of three intensity classes (Otsu on "
    "the reference, both smoothed by one voxel)."
)
SPREAD_NOTE = (
    "Spread: the standard deviation over the samples. Raw coverage takes it for that of a Gaussian; the conformal "
    "factor of a level is taken on the other people and tested on this one. Half width: mean of factor x standard "
    "deviation, of the data range. Voxels of a head are not independent and the people are few: read the factors as "
    "what these heads needed, not as a guarantee for another scanner. The stored factors are those of everybody here."
)


def build(outcome: Outcome, uncertainty: dict | None, weights: str, settings: dict) -> dict:
    """Everything, JSON-ready. weights: SHA-256 of the model whose spread was calibrated."""
    rows = [{k: v for k, v in row.items() if k not in ("fsc_curve", "nmi")} for row in rows_as_dicts(outcome.rows)]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return {
        **circumstances(FORMAT, settings),
        "weights": weights,
        "volumes": outcome.volumes,
        "skipped": outcome.skipped,
        "bars": [b for m in methods for b in bars(m, [r for r in rows if r["method"] == m])]
        + _spread_bars(uncertainty),
        "uncertainty": uncertainty,
        "rows": rows,
    }


def bars(method: str, rows: Sequence[dict]) -> list[dict]:
    """What the safety targets ask of a method, what was found, and whether that is met (None: not held to it)."""
    is_network = method not in (*BASELINES, "linear")
    lesions = [row["lesions"] for row in rows if row["lesions"] and row["lesions"]["inserted"]]
    total = {key: sum(lines[key] for lines in lesions) for key in _COUNTS}
    lines = []

    def bar(text: str, value: str, holds: bool) -> None:
        lines.append({"method": method, "bar": text, "found": value, "met": bool(holds) if is_network else None})

    if lesions:
        share = total["survived"] / total["inserted"]
        bar("lesions survive >= 99 %", f"{share:.1%} of {total['inserted']}", share >= SURVIVAL)
        share = total["recovered"] / max(1, total["visible"])
        bar("visible ones keep 80 % of their contrast", f"{share:.1%} of {total['visible']}", share >= SURVIVAL)
        none = ", ".join(f"{total[key]} {key}" for key in ("ghosts", "phantoms", "invented"))
        bar("none appears where none was", none, not any(total[key] for key in ("ghosts", "phantoms", "invented")))
    worst = max(rows, key=lambda row: row["tissue_change"])
    mean = float(np.mean([row["tissue_change"] for row in rows]))
    where = f"mean {mean:.2%}, worst {worst['tissue_change']:.2%} ({worst['volume']}, {worst['case']})"
    bar("tissue volume changes by < 1 %", where, worst["tissue_change"] < TISSUE_LIMIT)
    noisy = [row for row in rows if row["chi2"] is not None]
    if noisy:
        values = ", ".join(f"{row['chi2']:.2f} ({row['volume']}, {row['case']})" for row in noisy)
        bar("chi2 0.9 to 1.1", values, all(CHI2_RANGE[0] <= row["chi2"] <= CHI2_RANGE[1] for row in noisy))
    return lines


_COUNTS = ("inserted", "survived", "visible", "recovered", "ghosts", "phantoms", "invented")


def _spread_bars(uncertainty: dict | None) -> list[dict]:
    if uncertainty is None:
        return []
    lines = []
    for fold in uncertainty["folds"]:
        row = min(fold["rows"], key=lambda row: abs(row["level"] - 0.9))
        lines.append(
            {
                "method": f"{uncertainty['samples']} samples of {uncertainty['steps']} steps",
                "bar": "90 % intervals hold within 5 points on people they were not calibrated on",
                "found": f"{row['coverage']:.1%} on {fold['tested_on']} (raw {row['coverage_raw']:.1%})",
                "met": abs(row["coverage"] - row["level"]) <= COVERAGE_SLACK,
            }
        )
    return lines


def render(report: dict) -> str:
    """safety.md from the JSON form alone."""
    settings = dict(report["settings"])
    command = settings.pop("command")
    settings = ", ".join(f"{key} {words_of(value)}" for key, value in settings.items() if value not in (None, []))
    lines = [
        "# Safety",
        "",
        f"`{command}`",
        "",
        f"- volumes: {', '.join(report['volumes'])}",
        f"- settings: {settings}",
        f"- commit {report['commit'] or 'unknown'}, {report['date']}",
        "",
        "## Bars",
        "",
        bars_table(report),
        "",
        CHI2_NOTE,
        "",
        "## Each volume and case",
        "",
        _rows(report["rows"]),
        "",
        LESION_NOTE,
    ]
    if report["uncertainty"]:
        lines += ["", "## The spread of the samples", "", spread_table(report["uncertainty"]), "", SPREAD_NOTE]
        lines += ["", _case_table(report["uncertainty"])]
    return "\n".join(lines) + "\n"


def bars_table(report: dict) -> str:
    """One line per method and bar."""
    answer = {True: "yes", False: "**no**", None: "-"}
    lines = ["| method | bar | found | met |", "|---|---|---|---|"]
    lines += [f"| `{b['method']}` | {b['bar']} | {b['found']} | {answer[b['met']]} |" for b in report["bars"]]
    return "\n".join(lines)


def spread_table(uncertainty: dict) -> str:
    """Coverage against nominal levels: raw and calibrated on the others; and the factors that the weights carry."""
    tested = [fold["tested_on"] for fold in uncertainty["folds"]]
    head = ["nominal", *(f"{name}: raw | calibrated | half width" for name in tested), "stored factor"]
    lines = ["| " + " | ".join(head) + " |", "|---" * (2 + 3 * len(tested)) + "|"]
    for k, row in enumerate(uncertainty["folds"][0]["rows"]):
        cells = [f"{row['level']:.1%}"]
        for fold in uncertainty["folds"]:
            r = fold["rows"][k]
            width = r["half_width"]
            cells += [f"{r['coverage_raw']:.1%}", f"{r['coverage']:.1%}", "-" if width is None else f"{width:.2%}"]
        factor = uncertainty["stored"]["scale"].get(format(row["level"], "g"))
        cells.append("-" if factor is None else f"{factor:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _case_table(uncertainty: dict) -> str:
    lines = ["| volume | case | mean error | mean spread | rank correlation | in the 90 % interval |", "|---" * 6 + "|"]
    for row in uncertainty["by_case"]:
        related = "-" if row["rank_correlation"] is None else f"{row['rank_correlation']:.2f}"
        lines.append(
            f"| {row['person']} | {row['case']} | {row['error']:.2%} | {row['std']:.2%} | {related} | "
            f"{row['coverage_90']:.1%} |"
        )
    return "\n".join(lines)


def _rows(rows: Sequence[dict]) -> str:
    head = ["volume", "case", "method", *_COUNTS, "tissue", "chi2"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        counts = [str(row["lesions"][key]) if row["lesions"] else "-" for key in _COUNTS]
        chi2 = "-" if row["chi2"] is None else f"{row['chi2']:.2f}"
        cells = [row["volume"], row["case"], f"`{row['method']}`", *counts, f"{row['tissue_change']:.2%}", chi2]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
