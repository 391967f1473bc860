"""The tables of docs/performance.md, rendered from result files; readme_tables.py puts them there."""

from __future__ import annotations

import json
from pathlib import Path

# Why a rival of ops.json is faster, by (operator, rival): one sentence for each loss that the page lists.
LOSSES = {
    ("noise", "torch.randn"): "The numbers of torch.randn depend on shape and order; ours are a function of seed and "
    "voxel index, the same on every device and in every tile, and that costs a Philox block per voxel.",
    ("resample3d", "compile"): "Inductor turns the eight taps of order 1 into one vector loop; ours is one loop for "
    "all orders, and mrisr itself interpolates with order 5, which has no such rival.",
    ("sampler_step", "compile"): "Without noise the step is a handful of sums, which Inductor writes for exactly these "
    "arguments and shape; ours is one loop too, for every combination, and takes milliseconds of a job of seconds.",
    (
        "group_norm",
        "compile",
    ): "On maps that stay in the cache Inductor's one pass wins; on larger ones, where networks "
    "spend their time, ours is level with it or faster.",
    (
        "group_norm",
        "eager",
    ): "These maps stay in the cache, where fewer passes over memory save nothing, and the second "
    "pass for exact statistics (never E[x^2] - E[x]^2) has to be made all the same.",
    ("attention3d", "compile"): "Both are PyTorch's product of attention here, and Inductor writes the cutting into "
    "windows around it as one loop; with shifted windows, every other layer, ours leaves out what the mask hides.",
    (
        "rms_norm",
        "compile",
    ): "Small maps in the cache again; on the largest, which take most of the time, ours is level or faster.",
}


def performance(folder: Path) -> str:
    """Everything measured about speed and memory, as Markdown; a result that is not there is said to be missing."""
    parts = {
        "end_to_end": _reference,
        "stages": _stages,
        "throughput": _throughput,
        "precision": _precision,
        "exact_tiling": _exact,
        "network_floor": _floor,
        "ops": _operators,
        "scaling": _scaling,
    }
    text = []
    for name, render in parts.items():
        path = folder / f"{name}.json"
        text.append(
            render(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else f"{name}: not measured."
        )
    text.append(
        "**On a GPU** nothing has been measured; [what is unmeasured](benchmarks/results/UNMEASURED.md) lists every "
        "kernel and call, and how far each has been checked without one."
    )
    return "\n\n".join(text)


def _reference(result: dict) -> str:
    lines = [
        f"**The reference job** {_where('end_to_end', result)}: {result['job']}, no file I/O.",
        "",
        "| input, precision | seconds | first call | peak memory | active voxels | engine |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in result["inputs"].items():
        lines.append(
            f"| {name} | {r['seconds']:.1f} s | {r['first_call_s']:.1f} s | {r['peak_gb']:.2f} GB | "
            f"{r['active_fraction']:.0%} | {r['engine']}, {r['threads']} threads |"
        )
    if "rivals" in result:
        ratios = _ratios(result["rivals"]["ours_times_faster_than"])
        job = _ratios(result["rivals"]["job_times_faster_than"])
        lines += [
            "",
            f"The network stage beside the same network in PyTorch in the same run, in float32: {ratios} on the same "
            f"voxels; {job} on the reference job, where PyTorch is given the whole grid and mrisr leaves out the air "
            "around the head.",
        ]
        if "bfloat16" in result["rivals"]:
            ratios = _ratios(result["rivals"]["bfloat16"]["ours_times_faster_than"])
            lines[-1] += f" Both in bfloat16, PyTorch by autocast: {ratios}."
    return "\n".join(lines)


def _stages(result: dict) -> str:
    """Columns: ways, caches and commits; a stage's own seconds of the processors."""
    rows = result["rows"]
    names = list(dict.fromkeys(stage for row in rows for stage in row["stages"]))
    lines = [
        f"**Stage by stage, file to file** {_where('stages', result)}: {result['job']}. Seconds of the processors, and "
        "MB held at most; cold: with an empty cache. Commits took turns; on a loaded machine the clock means little.",
        "",
        "| stage | " + " | ".join(f"{row['way']}, {row['cache']}, {row['commit']}" for row in rows) + " |",
        "|---" * (1 + len(rows)) + "|",
    ]
    for name in (*names, "all"):
        times = [row["all"] if name == "all" else row["stages"].get(name) for row in rows]
        cells = ["-" if s is None else f"{s['cpu_s']:.2f} s, {s['peak_mb']:.0f}" for s in times]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratios(ratios: dict) -> str:
    return ", ".join(f"{ratio:.2f}x {name.replace('_', ' ')}" for name, ratio in ratios.items())


def _throughput(result: dict) -> str:
    lines = [
        f"**Throughput** {_where('throughput', result)}: {result['job']}; {result['volumes']} volumes each way, "
        "alternating.",
        "",
        "| way | volumes per hour | median | p99 |",
        "|---|---|---|---|",
    ]
    for name, way in result["ways"].items():
        s = way["seconds"]
        lines.append(f"| {name} | {way['volumes_per_hour']:.0f} | {s['p50']:.2f} s | {s['p99']:.2f} s |")
    return "\n".join(lines)


def _precision(result: dict) -> str:
    most = max(abs(row["psnr_bfloat16"] - row["psnr_float32"]) for row in result["rows"])
    faults = "; ".join(result["faults"]) or "none"
    return (
        f"**bfloat16 beside float32** {_where('precision', result)}: on {len(result['rows'])} cases the PSNR moves by "
        f"{most:.4f} dB at most (sha256 {result['model']['sha256'][:12]}). Beyond the limits (0.01 dB, 0.005 of the "
        f"maximum, a lesion): {faults}. [Every row](benchmarks/results/precision.md)."
    )


def _where(name: str, result: dict) -> str:
    m = result["machine"]
    units = ", ".join(f for f in m.get("features", ()) if f in ("amx_bf16", "avx512_bf16"))
    cpu = f"{m['cpu']} ({units})" if units else m["cpu"]
    return (
        f"([file](benchmarks/results/{name}.json): {cpu}, {m['cores']} cores, load {m['load']}; "
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
            job, earlier = f"{r['voxels'] / 1e6:.0f} M voxels", r.get("measured")
            if earlier:  # a part that this run has not measured again
                job += f" ({earlier['machine']['cpu']}, {earlier['date'][:10]})"
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
    return "\n".join([*lines, "", "Where ours loses:", "", *_losses(result["rows"])])


def _losses(rows: list[dict]) -> list[str]:
    """A line per operator and rival that is faster somewhere, and why."""
    losses: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for rival, ratio in row["times_faster_than"].items():
            if row["seconds"] and ratio < 1:
                losses.setdefault((row["family"], rival), []).append(f"{row['case']} ({ratio:.2f})")
    return [
        f"- `{family}` beside {rival}: {', '.join(cases)}. {_reason(family, rival)}"
        for (family, rival), cases in losses.items()
    ] or ["- nowhere."]


def _reason(family: str, rival: str) -> str:
    if (family, rival) not in LOSSES:
        raise ValueError(f"LOSSES in {__file__} has no sentence for {family} beside {rival}, which is faster somewhere")
    return LOSSES[family, rival]


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
