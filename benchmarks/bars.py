"""What was aimed at and what was found, from the result files: the bars that are missed beside those that are met."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

GAIN, WORST = 1.8, 1.0  # dB over cubic: mean of the cases, and every case
TEACHER = 0.3  # dB that a teacher has to be better
YARDSTICK = 0.05  # dB within which the mean has to be of the deterministic network
DENOISED = 1.5  # dB over the answer that keeps the noise
CHI2 = (0.9, 1.1)
WAITING, CONVOLVING = 0.01, 0.7  # of a step
FOUND = 0.1  # of a width
TISSUE = (1.0, 2.0)  # per cent of a tissue's volume: mean and worst
SIZES = (8, 25)  # million parameters, of the networks to be raced

Row = tuple[str, str, bool | None]  # None: no aim, but what one depends on


def table(folder: Path) -> str:
    """Markdown, a row for each bar whose result file there is; "" where there is none."""
    rows = [
        row
        for make in (gains, teacher, instead, race, yardstick, denoising, samples, tissue, zero_filling, steps)
        for row in make(folder)
    ]
    if not rows:
        return ""
    lines = ["| aimed at | found | met |", "|---|---|---|"]
    said = {True: "yes", False: "**no**", None: "-"}
    return "\n".join([*lines, *(f"| {aim} | {found} | {said[met]} |" for aim, found, met in rows)])


def gains(folder: Path) -> Iterator[Row]:
    """The mean's gain over cubic, on the protocol's cases."""
    for report in _read(folder, "evaluation"):
        ours = _method(report, "mrisr")
        mean, worst = ours["mean"]["gain"], ours["worst"]["gain"]
        people = f"on the {len(report['volumes'])} held-out people"
        yield f"mean gain of the cases >= +{GAIN} dB", f"{mean:+.2f} dB {people}", mean >= GAIN
        case = ours["worst"].get("case", "")
        yield f"no case below +{WORST} dB", f"{worst:+.2f} dB ({case})", worst >= WORST


def teacher(folder: Path) -> Iterator[Row]:
    """The larger network, after the leg that it was given."""
    log, begun = _log(folder, "teacher"), _read(folder, "held_out")
    for held in begun if log else ():
        first = next(m["gain_db"]["mean"] for name, m in held["models"].items() if "v1" in name)
        gained = log[-1]["mean"] - first
        yield (
            f"a teacher {TEACHER} dB better than what it began as, `base` version 1",
            f"{gained:+.2f} dB after {log[-1]['step']} steps: none is shipped",
            gained >= TEACHER,
        )


def _held_out(folder: Path) -> Iterator[dict[str, float]]:
    """Model -> mean gain on the held-out cases, dB."""
    for held in _read(folder, "held_out"):
        yield {name.removesuffix(".safetensors"): m["gain_db"]["mean"] for name, m in held["models"].items()}


def instead(folder: Path) -> Iterator[Row]:
    """What the student's mean has gained with the time that a teacher would have taken."""
    for gains in _held_out(folder):
        if "general" in gains:
            gained = gains["base"] - gains["base-v1"]
            yield (
                f"in its place the mean of `base` {TEACHER} dB better than version 1",
                f"{gained:+.2f} dB by a network for 2D and one for 3D; "
                f"{gains['general'] - gains['base-v1']:+.2f} dB by one for all",
                gained >= TEACHER,
            )


def race(folder: Path) -> Iterator[Row]:
    """Which size learns most in equal time, from scratch, and with which normalisation where rows differ in that."""
    for result in _read(folder, "size_race"):
        texts = [
            f"{row['parameters'] / 1e6:.1f} M {row['gains']['mean']:+.2f} dB ({row['steps']} steps, "
            f"{row['gflop_per_s']:.0f} GFLOP/s)"
            for row in sorted(result["rows"], key=lambda row: row["parameters"])
        ]
        large = sum(SIZES[0] <= row["parameters"] / 1e6 <= SIZES[1] for row in result["rows"])
        norms = len({row.get("norm") for row in result["rows"]})
        alike = "" if norms > 1 else "; normalisations were not raced"
        yield (
            f"a race of sizes from {SIZES[0]} to {SIZES[1]} M parameters, and of normalisations",
            f"{result['minutes']:g} min each: {', '.join(texts)}{alike}",
            large >= 3 and norms > 1,
        )


def yardstick(folder: Path) -> Iterator[Row]:
    """The deterministic network trained with L1, of equal size and budget: beside the general network, which began with
    the same weights and learnt for as many steps; and in the ablation."""
    aim = f"`mean` within {YARDSTICK} dB of a deterministic L1 network of equal size and budget"
    for gains in _held_out(folder):
        if {"L1", "general"} <= set(gains):
            apart = gains["general"] - gains["L1"]
            found = (
                f"{apart:+.2f} dB (the general network, version 3, {gains['general']:+.2f} dB, L1 {gains['L1']:+.2f} "
                f"dB; those for 2D and 3D began with the L1 one and learnt on: {gains['base']:+.2f} dB)"
            )
            yield aim, found, apart >= -YARDSTICK
    for ablation in _read(folder, "distill_ablation"):
        rows = {row["variant"]: row["mean/gain"][0] for row in ablation["summary"]}
        apart = rows["full"] - rows["L1 network"]
        yield f"{aim}, small ones of the ablation", f"{apart:+.2f} dB", apart >= -YARDSTICK


def denoising(folder: Path) -> Iterator[Row]:
    """What `denoise=1` gains on the answer without it, and what is left of the noise and of lesions."""
    for report in _read(folder, "denoise"):
        plain, clean = (_method(report, name)["cases"] for name in ("mrisr", "denoise"))
        for case in clean:
            gained = clean[case]["psnr"] - plain[case]["psnr"]
            yield f"`denoise=1`, `{case}`: >= +{DENOISED} dB over 0", f"{gained:+.2f} dB", gained >= DENOISED
        for limit in _read(folder, "denoise_ceiling"):
            most = [row["ceiling"] for row in limit["rows"] if row["case"] == "iso2n"]
            yield (
                "(what all of the noise of `iso2n` costs the general network, version 3, without `denoise`)",
                f"{sum(most) / len(most):.2f} dB, {max(most):.2f} at most",
                None,
            )
        left = [row["chi2"] for row in report["rows"] if row["method"] == "denoise" and row["chi2"] is not None]
        yield (
            f"`denoise=1`: chi2 {CHI2[0]} to {CHI2[1]}",
            f"{min(left):.2f} to {max(left):.2f}",
            CHI2[0] <= min(left) and max(left) <= CHI2[1],
        )
    for report in _read(folder, "safety"):
        aims = {"survived": "lesion survival unchanged", "recovered": "stricter, as many lesions keep their contrast"}
        for what, aim in aims.items():
            kept = [_lesions(report, name, what) for name in ("mrisr", "denoise")]
            if None not in kept:
                yield f"`denoise=1`: {aim}", f"{kept[1]} of {kept[0]}", kept[1] >= kept[0]


def samples(folder: Path) -> Iterator[Row]:
    """A sample against the mean, and the intervals."""
    for report in _read(folder, "comparison"):
        mean, drawn = (_method(report, name)["mean"] for name in ("mean", "sample-4"))
        met = drawn["hfen"] < mean["hfen"] and drawn["fsc_beyond"] > mean["fsc_beyond"]
        found = (
            f"HFEN {drawn['hfen']:.3f} beside {mean['hfen']:.3f}, FSC beyond {drawn['fsc_beyond']:.3f} beside "
            f"{mean['fsc_beyond']:.3f}"
        )
        yield "a sample of 4 steps better than `mean` in HFEN and FSC", found, met
    for report in _read(folder, "safety"):
        held = [bar for bar in report["bars"] if bar["bar"].startswith("90 % intervals hold")]
        if held:
            found = ", ".join(bar["found"].split(" (")[0] for bar in held)
            yield "90 % intervals hold within 5 points on people not calibrated on", found, all(b["met"] for b in held)


def tissue(folder: Path) -> Iterator[Row]:
    """Tissue volumes, and what appears where nothing was."""
    for report in _read(folder, "safety"):
        changes = [100 * row["tissue_change"] for row in report["rows"] if row["method"] == "mrisr"]
        mean, worst = sum(changes) / len(changes), max(changes)
        yield f"tissue volume changes by < {TISSUE[0]:g} % in the mean", f"{mean:.2f} %", mean < TISSUE[0]
        yield f"and by < {TISSUE[1]:g} % at worst", f"{worst:.2f} %", worst < TISSUE[1]
        seen = {name: _lesions(report, "mrisr", name) for name in ("ghosts", "phantoms", "invented")}
        yield "no lesion where none was", ", ".join(f"{n} {name}" for name, n in seen.items()), not any(seen.values())


def steps(folder: Path) -> Iterator[Row]:
    """What a training step waits for."""
    log = [entry["data_share"] for entry in _log(folder, "base-v3")]
    if log:
        found = f"{min(log):.0%} to {max(log):.0%} of the time of version 3's steps"
        yield "no training step waits for its pairs", found, max(log) < WAITING
    for result in _read(folder, "pair_wait"):
        alone, ahead = sorted(result["rows"], key=lambda row: row["prefetch"])
        found = (
            f"{ahead['waiting_share']:.1%} of a step of {ahead['seconds_per_step']:.2f} s; on one core "
            f"{alone['waiting_share']:.0%} of {alone['seconds_per_step']:.2f} s"
        )
        yield "nor with `prefetch` on a second core", found, ahead["waiting_share"] < WAITING
    for result in _read(folder, "step_shares"):
        ahead = next(row for row in result["rows"] if row["prefetch"])
        forward, backward = ahead["convolutions_forward"], ahead["convolutions_backward"]
        found = (
            f"{forward + backward:.0%} in {ahead['precision']} on {result['machine']['cpu']}, pairs on a second core"
        )
        yield f"convolutions >= {CONVOLVING:.0%} of a training step", found, forward + backward >= CONVOLVING


def zero_filling(folder: Path) -> Iterator[Row]:
    """What `psf="auto"` makes of scans that are stored finer than they were measured."""
    for result in _read(folder, "resolution_sweep"):
        people = [p for row in result["rows"] if row["group"] == "zero-filled" for p in row["people"]]
        off = [max(abs(f / t - 1) for f, t in zip(p["found_mm"], p["acquired_mm"])) for p in people]
        if off:
            right = sum(error <= FOUND for error in off)
            found = f"{right} of {len(off)}, to {max(off):.1%} at worst"
            yield f"zero-filled scans are recognised, their true widths to {FOUND:.0%}", found, right == len(off)


def _read(folder: Path, name: str) -> list[dict]:
    path = folder / f"{name}.json"
    return [json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def _log(folder: Path, name: str) -> list[dict]:
    path = folder / f"training_{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _method(report: dict, name: str) -> dict:
    return next(entry for entry in report["summary"] if entry["method"] == name)


def _lesions(report: dict, method: str, what: str) -> int | None:
    counted = [row["lesions"][what] for row in report["rows"] if row["method"] == method and row["lesions"]]
    return sum(counted) if counted else None
