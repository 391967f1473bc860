"""The measured figures of the README and of the model cards, from the committed result files and from nothing else.

python benchmarks/readme_tables.py            writes them between the markers of README.md and of every card there is
python benchmarks/readme_tables.py --check    exits 1 where one of them says something else
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"
WEIGHTS = ROOT / "mrisr" / "weights"
CARD = WEIGHTS / "base.md"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
DETAIL = "<!-- performance:begin -->", "<!-- performance:end -->"
# Pages of benchmarks/results whose tables a card holds: the title, and which of the tables (None: all of them).
PAGES = {
    "comparison": ("What was to be shown, and every method", (0, 1)),
    "resolution_sweep": ("Every resolution", None),
    "safety": ("Safety and the spread of the samples", (0, 2)),
    "guidance": ("Gradient nonlinearity and bias field, corrected and told to the network", (0, 1)),
    "distill_ablation": ("What each ingredient of the distillation buys", None),
}
CARDS = {"base": tuple(PAGES), "teacher-small": ("comparison",)}


def measured(folder: Path = RESULTS) -> str:
    """Everything between the markers, as Markdown; a result that is not there is said to be missing."""
    parts = [
        ("end_to_end", _speed, "Speed: not measured in this version yet (`mrisr bench`)."),
        ("evaluation", _quality, "Quality: not measured in this version yet (`mrisr evaluate`)."),
        ("demo", _demo, "Demo: not measured in this version yet (`mrisr demo`)."),
    ]
    text = []
    for name, render, missing in parts:
        path = folder / f"{name}.json"
        text.append(render(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else missing)
    text += optional(folder)
    text.append("GPU: nothing ran on one so far; see [what is unmeasured](benchmarks/results/UNMEASURED.md).")
    return "\n\n".join(text)


def _speed(result: dict) -> str:
    machine, gpu = result["machine"], result["machine"].get("gpu")
    lines = [
        f"**Speed** ([file](benchmarks/results/end_to_end.json): {result['job']}, no file I/O; "
        f"{machine['cpu']}, {machine['cores']} cores, {gpu or 'no GPU'}, load {machine['load']}; "
        f"{result['date']}, commit {result['commit']})",
        "",
        "| input | seconds | first call | peak memory | active voxels | engine |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in result["inputs"].items():
        lines.append(
            f"| {name} | {r['seconds']:.1f} s | {r['first_call_s']:.1f} s | {r['peak_gb']:.2f} GB | "
            f"{r['active_fraction']:.0%} | {r['engine']}, {r['threads']} threads |"
        )
    if "rivals" in result:
        ratios = result["rivals"]["ours_times_faster_than"]
        said = ", ".join(f"{ratio:.2f}x {name.replace('_', ' ')}" for name, ratio in ratios.items())
        job = ", ".join(
            f"{ratio:.2f}x {name.replace('_', ' ')}"
            for name, ratio in result["rivals"]["job_times_faster_than"].items()
        )
        lines += [
            "",
            f"The network stage beside the same network in PyTorch in the same run: {said} on the same voxels; {job} "
            "on the reference job, where PyTorch is given the whole grid and mrisr leaves out the air around the head.",
        ]
    return "\n".join(lines)


def _quality(report: dict) -> str:
    cases = list(report["cases"])
    lines = [
        f"**Quality** ([file](benchmarks/results/evaluation.json): PSNR gain over cubic in dB, scans "
        f"simulated from {len(report['volumes'])} volume(s): {', '.join(sorted(report['volumes']))}; "
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
    said = {"comparison": _comparison, "resolution_sweep": _sweep, "safety": _safety}
    lines = []
    for name, (title, _) in PAGES.items():
        path = folder / f"{name}.json"
        if path.is_file():
            text = said[name](json.loads(path.read_text(encoding="utf-8"))) if name in said else "measured there."
            lines.append(f"**{title}** ([page](benchmarks/results/{name}.md)): {text}")
    return lines


def _comparison(result: dict) -> str:
    gains = ", ".join(f"{entry['method']} {entry['mean']['gain']:+.2f}" for entry in result["summary"])
    met = sum(v["met"] for v in result["verdicts"])
    return f"gain over cubic in dB, mean of the cases: {gains}; {met} of {len(result['verdicts'])} bars met."


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
    judged = [bar for bar in result["bars"] if bar["met"] is not None]
    missed = sorted({bar["bar"] for bar in judged if not bar["met"]})
    return f"{lesions}. Bars missed: {'; '.join(missed) or 'none'}."


def _demo(record: dict) -> str:
    said = ", ".join(f"{name} {value:.2f} dB" for name, value in record["psnr_db"].items())
    return f"**Demo** ([file](benchmarks/results/demo.json): {record['job']}): PSNR in the head: {said}."


def performance(folder: Path = RESULTS) -> str:
    """The tables further down the README: exact tiling, operators, scaling."""
    parts = [("exact_tiling", _exact), ("network_floor", _floor), ("ops", _operators), ("scaling", _scaling)]
    text = []
    for name, render in parts:
        path = folder / f"{name}.json"
        text.append(
            render(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else f"{name}: not measured."
        )
    return "\n\n".join(text)


def _where(name: str, result: dict) -> str:
    m = result["machine"]
    return (
        f"([file](benchmarks/results/{name}.json): {m['cpu']}, {m['cores']} cores, load {m['load']}; "
        f"{result['date']}, commit {result['commit']})"
    )


def _exact(result: dict) -> str:
    lines = [
        f"**Exact tiling** {_where('exact_tiling', result)}. Error: largest difference from the first row of the job, "
        "as a share of p99.9 - p0.1.",
        "",
        "| job | how | budget | peak | in a file | network | beside the first | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rows in result["parts"].values():
        for r in rows:
            job = f"{r['voxels'] / 1e6:.0f} M voxels"
            lines.append(
                f"| {job} | {r['name']} | {r['budget_gb']:g} GB | {r['peak_gb']:.2f} GB | {r['spilled_gb']:.2f} GB | "
                f"{r['network_s']:.1f} s | {r['time_ratio']:.2f}x | {r['max_error']:.0e} |"
            )
    return "\n".join(lines)


def _operators(result: dict) -> str:
    ceilings = result["ceilings"]
    lines = [
        f"**Operators** {_where('ops', result)}; {result['threads']} threads, "
        f"copy {ceilings['copy_gb_per_s']:.1f} GB/s, "
        f"float32 products {ceilings['matmul_gflop_per_s']:.0f} GFLOP/s. Times above 1 are ours faster.",
        "",
        "| operator | case | best of ours | share of the floor | times faster than |",
        "|---|---|---|---|---|",
    ]
    for r in filter(lambda r: r["seconds"], result["rows"]):
        against = ", ".join(f"{ratio:.2f} {name}" for name, ratio in r["times_faster_than"].items()) or "-"
        ours = f"{r['best']}, {r['seconds'][r['best']] * 1e3:.2f} ms"
        lines.append(f"| {r['family']} | {r['case']} | {ours} | {r['share_of_floor']:.0%} | {against} |")
    return "\n".join(lines)


def _floor(result: dict) -> str:
    shape = " x ".join(map(str, result["shape"]))
    times = "; ".join(
        f"{name} {s:.3f} s ({result['share_of_the_floor'][name]:.0%})" for name, s in result["seconds"].items()
    )
    layers = result["openvino_layers"]
    rest = sum(share for kind, share in layers.items() if not kind.startswith("Convolution"))
    return (
        f"**The network's floor** {_where('network_floor', result)}. "
        f"{result['gflop_of_the_convolutions']:.0f} GFLOP of convolutions on {shape} voxels at the best float32 rate "
        f"found here ({result['best_gflop_per_s']:.0f} GFLOP/s) take {result['floor_s']:.3f} s; in the same run, with "
        f"the share of that floor: {times}. Of OpenVINO's time {rest:.0%} is not convolution, which is the most that "
        "another export of the same weights could save."
    )


def _scaling(result: dict) -> str:
    lines = [
        f"**Scaling** {_where('scaling', result)}.",
        "",
        "| threads | output voxels | seconds | ns per voxel | peak memory |",
        "|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        ns, peak = r["seconds"] / r["voxels"] * 1e9, r["peak_bytes"] / 1e9
        lines.append(f"| {r['threads']} | {r['voxels'] / 1e6:.2f} M | {r['seconds']:.2f} | {ns:.0f} | {peak:.2f} GB |")
    fits = "; ".join(f"{n} threads: time ~ voxels^{f['time_exponent']:.2f}" for n, f in result["fits"].items() if f)
    return "\n".join([*lines, "", fits + "."])


def take_demo(folder: Path, results: Path = RESULTS) -> None:
    """Keep the picture and the figures of a demo; its paths and its volumes stay out of the repository."""
    record = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    info = record["info"]
    kept = {
        "job": "MNI152 template, 2 mm to 1 mm",
        "psnr_db": record["psnr_db"],
        "model": info["model"],
        "weights": info["weights"],
        "engine": info["engine"],
        "seconds": info["seconds"],
        "versions": info["versions"],
    }
    (results / "demo.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    (results / "demo.png").write_bytes((folder / "demo.png").read_bytes())


def quality(folder: Path = RESULTS) -> str:
    """The table of cases in the card of base."""
    path = folder / "evaluation.json"
    return _quality(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else "Not measured yet."


def card(name: str, folder: Path = RESULTS) -> str:
    """Everything measured in the card of the weights `name`: whole tables, of the pages that there are."""
    parts = [quality(folder)] if name == "base" else []
    for page in CARDS[name]:
        path = folder / f"{page}.md"
        if path.is_file():
            title, wanted = PAGES[page]
            found = tables(path.read_text(encoding="utf-8"))
            found = found if wanted is None else [found[k] for k in wanted if k < len(found)]
            parts.append("\n\n".join([f"**{title}** ([page](benchmarks/results/{page}.md))", *found]))
    return "\n\n".join(parts) or "Not measured yet."


def tables(page: str) -> list[str]:
    """The tables of a Markdown page, in order."""
    found: list[list[str]] = []
    before = ""
    for line in page.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append(line)
        before = line
    return ["\n".join(lines) for lines in found]


def readme(page: str) -> str:
    """The README with all of its figures."""
    return filled(filled(page, measured()), performance(), DETAIL)


def filled(page: str, text: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """`page` with what is between its markers replaced by `text`."""
    before, begin, rest = page.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not (begin and end):
        raise ValueError(f"expected the markers {markers[0]} and {markers[1]}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the README differs")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="take demo.png and demo.json from there first")
    args = parser.parse_args()
    if args.demo:
        take_demo(args.demo)
    differing = 0
    pages = [(README, readme)]
    for name in CARDS:
        path = WEIGHTS / f"{name}.md"
        pages += [(path, lambda page, name=name: filled(page, card(name)))] if path.is_file() else []
    for page, fill in pages:
        now = page.read_text(encoding="utf-8")
        new = fill(now)
        differing += now != new
        if args.check and now != new:
            print(f"{page.name} differs from benchmarks/results: run python benchmarks/readme_tables.py")
        elif now != new:
            beside = page.with_name(f"{page.name}.new")
            beside.write_text(new, encoding="utf-8")
            os.replace(beside, page)
    return int(args.check and differing > 0)


if __name__ == "__main__":
    sys.exit(main())
