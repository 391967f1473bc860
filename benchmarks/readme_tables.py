"""The measured figures of every page, from the committed result files and from nothing else.

python benchmarks/readme_tables.py            writes them between the markers of README.md, docs/quality.md,
                                              docs/performance.md, docs/your_data.md, docs/join.md, docs/adapt.md and of
                                              every model card there is
python benchmarks/readme_tables.py --check    exits 1 where one of them says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bars
import performance_tables

from mrisr.io.atomic import replacing

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"
WEIGHTS, DOCS = ROOT / "mrisr" / "weights", ROOT / "docs"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
# Pages of benchmarks/results whose tables a card holds: the title, and which of the tables (None: all of them).
PAGES = {
    "comparison": ("What was to be shown, and every method", (0, 1)),
    "resolution_sweep": ("Every resolution", None),
    "safety": ("Safety and the spread of the samples", (0, 2)),
    "guidance": ("Gradient nonlinearity and bias field, corrected and told to the network", (0, 1)),
    "distill_ablation": ("What each ingredient of the distillation buys", None),
}
CARDS = {"base": tuple(PAGES), "teacher-small": ("comparison",)}
# The cases of the protocol in a reader's words; one that is not here is printed in the protocol's.
CASES = {
    "iso2": "2 mm, 3D",
    "iso2n": "2 mm, 3D, 2 % noise",
    "thick4": "1 x 1 x 4 mm, 2D slices",
    "iso1p5": "1.5 mm, 3D",
    "mix": "1.3 x 1.3 x 5 mm, 2D slices, noise, shading",
}


def readme_table(folder: Path = RESULTS) -> str:
    """The README's one table: quality by kind of scan, and what a head takes; then what became of lesions."""
    report, speed, safety = (_read(folder, name) for name in ("evaluation", "end_to_end", "safety"))
    if not (report and speed):
        return "Not measured in this version yet (`mrisr evaluate`, `mrisr bench`)."
    lines = ["| scan | cubic | mrisr | gain |", "|---|---|---|---|"]
    cubic, ours = (next(e for e in report["summary"] if e["method"] == name) for name in ("cubic", "mrisr"))
    for case, text in report["cases"].items():
        before, after = cubic["cases"][case]["psnr"], ours["cases"][case]
        lines.append(
            f"| {CASES.get(case, text)} | {before:.1f} dB | {after['psnr']:.1f} dB | {after['gain']:+.1f} dB |"
        )
    job, machine = list(speed["inputs"].values())[-1], speed["machine"]
    units = "amx_bf16" in machine.get("features", ()) and job.get("precision") == "bfloat16"
    where = f"{machine['cores']} cores{' with AMX' if units else ''}, {machine['gpu'] or 'no GPU'}"
    lines += [
        f"| **a whole head, 1 mm to 0.7 mm** ({where}) | | **{job['seconds']:.0f} s, {job['peak_gb']:.1f} GB** | |",
        "",
        f"PSNR inside {_judged(report)}, mean of {len(report['volumes'])} people nobody trained on, whose scans were "
        "*simulated* from finer ones; the worst case gains "
        f"{ours['worst']['gain']:+.1f} dB ([every figure](docs/quality.md), [speed](docs/performance.md)).",
    ]
    if safety:
        findings = [bar["found"] for bar in safety["bars"] if bar["method"] == "mrisr"]
        lines[-1] += (
            f" Of lesions put into them {findings[0].replace(' of ', ' (of ')}) survive; {findings[2]} "
            "([what that means](docs/quality.md#safety))."
        )
    return "\n".join(lines)


JOINED = {
    "clean": "three stacks, clean",
    "noisy": "three, 2 % noise",
    "moved": "three, noise, head moved between them",
    "two": "two stacks, 2 % noise",
}

ADAPTED = {"thick3": 3, "thick4": 4, "thick5": 5}  # case -> voxels across a slice
ADAPT_RECIPE, ADAPT_STEPS = "network-measured", 450  # what the package does
ADAPT_SHORT = 300  # steps of `adapt=120`


def adapted(folder: Path = RESULTS) -> str:
    """docs/adapt.md: on and off, by person and thickness; then by thickness."""
    result = _read(folder, "adapt")
    rows = [r for r in (result or {"rows": []})["rows"] if (r["recipe"], r["steps"]) == (ADAPT_RECIPE, ADAPT_STEPS)]
    rows = [row for case in ADAPTED for row in rows if row["case"] == case]
    if not rows:
        return "Not measured in this version yet (`experiments/adapt.py`)."
    lines = [
        "| slices | person | cubic | `base` | adapted | gain | gain inside | planes held back |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        values = " | ".join(f"{row[name]:.2f}" for name in ("cubic", "base", "adapted"))
        within = f"{row['gain_inside']:+.2f}" if "gain_inside" in row else "not taken"
        lines.append(
            f"| {ADAPTED[row['case']]} voxels | {row['person']} | {values} | {row['gain']:+.2f} | {within} | "
            f"{row['held_back_gain']:+.2f} |"
        )
    means = []
    for case, voxels in ADAPTED.items():
        gains = [row["gain"] for row in rows if row["case"] == case]
        if gains:
            means.append(
                f"{sum(gains) / len(gains):+.2f} dB at {voxels} voxels ({min(gains):+.2f} to {max(gains):+.2f})"
            )
    low, high = (limit(row["cpu_seconds"] for row in rows) for limit in (min, max))
    lines += [
        "",
        f"PSNR in dB of whole heads of people nobody trained on, slices simulated from finer scans; {ADAPT_STEPS} "
        f"steps, {low:.0f} to {high:.0f} s of one core ([file](../benchmarks/results/adapt.json), sha256 "
        f"{result['model'][:12]}, by `{result['command']}`). Inside: 15 mm and more within the head. Mean "
        f"gain: {', '.join(means)}.{_in_two_minutes(result['rows'])}",
    ]
    return "\n".join(lines)


def _in_two_minutes(rows: list[dict]) -> str:
    """What `adapt=120` buys, timed on two cores with nothing else to do."""
    rows = [r for r in rows if (r["recipe"], r["steps"], r["case"]) == (ADAPT_RECIPE, ADAPT_SHORT, "thick4")]
    if not rows:
        return ""
    gains, seconds = ([row[name] for row in rows] for name in ("gain", "seconds"))
    return (
        f" `adapt=120`, {ADAPT_SHORT} steps, at 4 voxels, on two cores with nothing else to do: "
        f"{sum(gains) / len(gains):+.2f} dB ({', '.join(f'{g:+.2f}' for g in gains)}) in {min(seconds):.0f} to "
        f"{max(seconds):.0f} s."
    )


def joined_stacks(folder: Path = RESULTS) -> str:
    """docs/join.md: a row for each person and case, what a whole head costs, then what strangers looked like."""
    result = _read(folder, "join")
    if not result:
        return "Not measured in this version yet (`experiments/join.py`)."
    columns = ("cubic", "base", "mean", "plain", "joined")
    judged = [row for case in JOINED for row in result["rows"] if row["case"] == case]
    crops = sorted({row["crop"] for row in judged})
    titles = ["stacks", "person", "best single, cubic", "best single, `base`", "mean of cubics", "no network", "joined"]
    titles += ["gain", "of it, the network's", *(f"gain in {n}^3" for n in crops[1:])]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    gains = {(row["person"], row["case"], row["crop"]): row["joined"] - row["cubic"] for row in judged}
    for row in judged:
        if row["crop"] == crops[0]:
            values = " | ".join(f"{row[name]:.1f}" for name in columns)
            won = [row["joined"] - row["cubic"], row["joined"] - row["plain"]]
            won += [gains.get((row["person"], row["case"], n)) for n in crops[1:]]
            cells = " | ".join("-" if gain is None else f"{gain:+.2f}" for gain in won)
            lines.append(f"| {JOINED[row['case']]} | {row['person']} | {values} | {cells} |")
    off = max(s["off_mm"] for row in judged for s in row["stacks"])
    motion = max(s["moved_mm"] for row in judged for s in row["stacks"])
    lines += [
        "",
        f"PSNR in dB, in the middle {crops[0]}^3 voxels of people nobody trained on, slices of "
        f"{result['thickness_voxels']} voxels simulated from finer scans ([file](../benchmarks/results/join.json), "
        f"sha256 {result['model'][:12]}, by `{result['command']}`). The single stacks have not moved. `No network` has "
        "the smoothness that is best on training scans; the best one for each of these very scans would give it "
        f"{max(row['plain_best'] - row['plain'] for row in judged):.2f} dB more at most. A head that "
        f"moved by up to {motion:.1f} mm on the mean was found to {off:.2f} mm.",
    ]
    lines[-1] += _whole_heads(result["rows"])
    strangers = [row for row in result["rows"] if "correlation" in row]
    if strangers:
        alike = min(s["correlation"] for row in judged for s in row["stacks"])
        most = max(row["correlation"] for row in strangers)
        refusals = sum(bool(row["refused"]) for row in strangers)
        lines[-1] += (
            f" Stacks of one head correlate by {alike:.3f} or more; with another person's or contrast's by {most:.2f} "
            f"at most ({refusals} of {len(strangers)} such pairs are refused)."
        )
    return "\n".join(lines)


def _whole_heads(rows: list[dict]) -> str:
    """What one, two and three stacks of a whole head took."""
    costs = sorted((row for row in rows if "count" in row), key=lambda row: row["count"])
    if not costs:
        return ""
    shape = " x ".join(map(str, costs[0]["voxels"]))
    each = "; ".join(
        f"{row['count']} stack{'s' * (row['count'] > 1)}: {row['cpu_seconds']:.0f} s, {row['memory_gb']:.1f} GB"
        for row in costs
    )
    return f" A whole head of {shape} voxels by the command line on one core, processor time and peak memory: {each}."


def your_data(folder: Path = RESULTS) -> str:
    """docs/your_data.md: a row for each kind of scan."""
    result = _read(folder, "your_data")
    if result is None:
        return "Not measured in this version yet (`experiments/your_data.py`)."
    lines = ["| what | scan | brought to | cubic | mrisr | gain | trained on |", "|---|---|---|---|---|---|---|"]
    for r in result["rows"]:
        before, after = r["cubic"]["psnr"], r["mrisr"]["psnr"]
        lines.append(
            f"| {r['title']} | {r['scan']} | {min(r['target_mm']):.2g} mm | {before:.1f} dB | {after:.1f} dB | "
            f"{after - before:+.1f} dB | {'no' if r['held_out'] else 'yes'} |"
        )
    sources = "; ".join(dict.fromkeys(f"{r['title'].split(',')[0]}: {r['source']}" for r in result["rows"]))
    model = result["model"]
    return "\n".join(
        [
            *lines,
            "",
            f"([file](benchmarks/results/your_data.json): {model['name']}, sha256 {model['sha256'][:12]}, the middle "
            f"{result['crop']}^3 voxels; {result['date']}, commit {result['commit']}. Scans: {sources}.)",
        ]
    )


def quality_page(folder: Path = RESULTS) -> str:
    """docs/quality.md: the protocol's table, then a line for each further page."""
    demo = _read(folder, "demo")
    parts = [quality(folder), *aimed(folder), *optional(folder)]
    return "\n\n".join([*parts, _demo(demo)] if demo else parts)


def quality(folder: Path = RESULTS) -> str:
    """The table of the protocol's cases."""
    report = _read(folder, "evaluation")
    return _quality(report) if report else "Not measured in this version yet (`mrisr evaluate`)."


def aimed(folder: Path = RESULTS) -> list[str]:
    """What was aimed at and what was found: one part, or none."""
    found = bars.table(folder)
    return [f"**What was aimed at, and what was found**\n\n{found}"] if found else []


def _read(folder: Path, name: str) -> dict | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _judged(report: dict) -> str:
    crop = report.get("settings", {}).get("crop")
    return f"the middle {crop}^3 voxels of the head" if crop else "the head"


def _quality(report: dict) -> str:
    cases = list(report["cases"])
    lines = [
        f"**Quality** ([file](benchmarks/results/evaluation.json): PSNR gain over cubic in dB, {_judged(report)}, "
        f"scans simulated from {len(report['volumes'])} volume(s): {', '.join(sorted(report['volumes']))}; "
        f"{report['date'][:10]}, commit {report['commit'] or 'unknown'})",
        "",
        f"| method | {' | '.join(cases)} | mean | worst |",
        "|---" * (len(cases) + 3) + "|",
    ]
    for entry in report["summary"]:
        gains = [entry["cases"].get(case, {}).get("gain") for case in cases] + [entry["mean"]["gain"]]
        cells = [("" if gain is None else f"{gain:+.2f}") for gain in gains]
        lines.append(f"| {entry['method']} | {' | '.join(cells)} | {entry['worst']['gain']:+.2f} |")
    return "\n".join(lines)


def optional(folder: Path = RESULTS) -> list[str]:
    """A line for each further page there is."""
    render = {"comparison": _comparison, "resolution_sweep": _sweep, "safety": _safety}
    lines = []
    for name, (title, _) in PAGES.items():
        result = _read(folder, name)
        if result is not None:
            text = render[name](result) if name in render else "measured there."
            lines.append(f"**{title}** ([page](benchmarks/results/{name}.md)): {text}")
    return lines


def _comparison(result: dict) -> str:
    gains = ", ".join(f"{entry['method']} {entry['mean']['gain']:+.2f}" for entry in result["summary"])
    count = sum(v["met"] for v in result["verdicts"])
    return f"gain over cubic in dB, mean of the cases: {gains}; {count} of {len(result['verdicts'])} bars met."


def _sweep(result: dict) -> str:
    def count(rows, holds):
        return sum(all(holds(person) for person in row["people"]) for row in rows)

    inside = [row for row in result["rows"] if row["inside"]]
    outside = [row for row in result["rows"] if not row["inside"]]
    wins = count(inside, lambda person: person["gain"] > 0)
    least = min(person["gain"] for row in inside for person in row["people"])
    return (
        f"{wins} of {len(inside)} rows inside the trained range beat cubic on everybody (least gain {least:+.2f} dB); "
        f"of {len(outside)} outside, {count(outside, lambda person: person['warned'])} warn."
    )


def _safety(result: dict) -> str:
    bars = [bar for bar in result["bars"] if bar["method"] == "mrisr"]
    lesions = "; ".join(f"{bar['bar']}: {bar['found']}" for bar in bars[:3])
    targets = [bar for bar in result["bars"] if bar["met"] is not None]
    missed = sorted({bar["bar"] for bar in targets if not bar["met"]})
    return f"{lesions}. Bars missed: {'; '.join(missed) or 'none'}."


def _demo(record: dict) -> str:
    scores = ", ".join(f"{name} {value:.2f} dB" for name, value in record["psnr_db"].items())
    return f"**Demo** ([file](benchmarks/results/demo.json): {record['job']}): PSNR in the head: {scores}."


def take_demo(folder: Path, results: Path = RESULTS) -> None:
    """Keep the picture and the figures of a demo; its paths and its volumes stay out of the repository."""
    record = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    info = record["info"]
    facts = {
        "job": "MNI152 template, 2 mm to 1 mm",
        "psnr_db": record["psnr_db"],
        "model": info["model"],
        "weights": info["weights"],
        "engine": info["engine"],
        "seconds": info["seconds"],
        "versions": info["versions"],
    }
    (results / "demo.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (results / "demo.png").write_bytes((folder / "demo.png").read_bytes())


def card(name: str, folder: Path = RESULTS) -> str:
    """Everything measured in the card of the weights `name`: whole tables, of the pages that there are."""
    parts = [quality(folder), *aimed(folder)] if name == "base" else []
    for page in CARDS[name]:
        path = folder / f"{page}.md"
        if path.is_file():
            title, places = PAGES[page]
            own = tables(path.read_text(encoding="utf-8"))
            own = own if places is None else [own[k] for k in places if k < len(own)]
            parts.append("\n\n".join([f"**{title}** ([page](benchmarks/results/{page}.md))", *own]))
    return "\n\n".join(parts) or "Not measured yet."


def tables(page: str) -> list[str]:
    """The tables of a Markdown page, in order."""
    result: list[list[str]] = []
    before = ""
    for line in page.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                result.append([])
            result[-1].append(line)
        before = line
    return ["\n".join(lines) for lines in result]


def pages() -> dict[Path, Callable[[], str]]:
    """Every page with measured figures, and what makes them."""
    below = {
        DOCS / "quality.md": quality_page,
        DOCS / "your_data.md": your_data,
        DOCS / "join.md": joined_stacks,
        DOCS / "adapt.md": adapted,
        DOCS / "performance.md": lambda: performance_tables.performance(RESULTS),
    }
    writers = {README: readme_table}
    # Links start at the root of the repository, which is above docs/.
    writers |= {
        path: lambda make=make: make().replace("](benchmarks/", "](../benchmarks/") for path, make in below.items()
    }
    cards = {WEIGHTS / f"{name}.md": name for name in CARDS}
    return writers | {path: lambda name=name: card(name) for path, name in cards.items() if path.is_file()}


def filled(page: str, text: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """`page` with what is between its markers replaced by `text`."""
    before, begin, rest = page.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not (begin and end):
        raise ValueError(f"expected the markers {markers[0]} and {markers[1]}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page differs")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="take demo.png and demo.json from there first")
    args = parser.parse_args()
    if args.demo:
        take_demo(args.demo)
    differing = 0
    for page, make in pages().items():
        now = page.read_text(encoding="utf-8")
        new = filled(now, make())
        differing += now != new
        if args.check and now != new:
            print(f"{page.name} differs from benchmarks/results: run python benchmarks/readme_tables.py")
        elif now != new:
            with replacing(page, force=True) as beside:
                beside.write_text(new, encoding="utf-8")
    return int(args.check and differing > 0)


if __name__ == "__main__":
    sys.exit(main())
