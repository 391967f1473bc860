"""Time and memory of `mrisr.upscale` against the size of the volume and the number of threads.

    python benchmarks/scaling.py [--factors 0.25 0.5 1 2 4 8] [--threads 1 2] [--base 96] [--model base]

A made-up head of base^3 voxels times each factor, 1 mm to 0.7 mm, every measurement in a fresh process. Writes
scaling.json with the fitted exponents: time ~ voxels^e; 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases
import record

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def run(
    factors=FACTORS, threads=(1, 2), base: int = 96, model: str = "base", repeats: int = 2, folder=record.UNRECORDED
):
    """Measure, write scaling.json into `folder`, and return its content."""
    rows = [_apart(edge_of(base, f), count, model, repeats) for count in threads for f in factors]
    rows = record.merged("scaling", rows, ("edge", "threads"), folder, {"base": base, "model": model})
    content = {"base": base, "model": model, "rows": rows, "fits": {str(n): fit(rows, n) for n in threads}}
    content["speed_up"] = speed_up(rows)
    record.write("scaling", content, folder)
    return content


def edge_of(base: int, factor: float) -> int:
    """The cube with `factor` times the voxels of base^3."""
    return max(8, round(base * factor ** (1 / 3)))


def fit(rows: list[dict], threads: int) -> dict:
    """Exponents of seconds, and bytes per target voxel of the peak, by least squares over one thread count."""
    mine = [row for row in rows if row["threads"] == threads]
    if len(mine) < 2:
        return {}
    voxels, seconds, peak = (np.array([row[k] for row in mine], float) for k in ("voxels", "seconds", "peak_bytes"))
    slope, fixed = np.polyfit(voxels, peak, 1)
    exponent, start = np.polyfit(np.log(voxels), np.log(seconds), 1)
    off = np.log(seconds) - (exponent * np.log(voxels) + start)
    return {
        "time_exponent": round(float(exponent), 3),
        "time_exponent_of_the_larger_half": _exponent(voxels[len(mine) // 2 :], seconds[len(mine) // 2 :]),
        "largest_deviation": f"{np.exp(np.abs(off).max()) - 1:.0%}",
        "peak_bytes_per_voxel": round(float(slope), 1),
        "peak_fixed_mb": round(float(fixed) / 1e6),
    }


def _exponent(voxels, seconds) -> float | None:
    return round(float(np.polyfit(np.log(voxels), np.log(seconds), 1)[0]), 3) if len(voxels) > 1 else None


def speed_up(rows: list[dict]) -> dict[str, float]:
    """Seconds of the fewest threads over those of the most, by voxels."""
    few, many = min(r["threads"] for r in rows), max(r["threads"] for r in rows)
    by = {(r["threads"], r["voxels"]): r["seconds"] for r in rows}
    return {str(v): round(s / by[many, v], 2) for (n, v), s in by.items() if n == few and many > few}


def _apart(edge: int, threads: int, model: str, repeats: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        words = ["--edge", str(edge), "--threads", str(threads), "--model", model, "--repeats", str(repeats)]
        process = subprocess.run([sys.executable, __file__, *words, "--answer", str(answer)], check=False)
        if process.returncode:
            raise RuntimeError(f"scaling: {edge}^3 voxels on {threads} threads ended with {process.returncode}")
        return json.loads(answer.read_text())


def measure(edge: int, threads: int, model: str, repeats: int) -> dict:
    """One size in this process: best seconds of the calls after the first, and the peak of the whole process."""
    import torch
    from end_to_end import load

    import mrisr
    from mrisr.infer.memory import peak_resident, resident

    torch.set_num_threads(threads)
    scan, network = cases.head((edge,) * 3), load(model)
    before, seconds = resident(), []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        out, info = mrisr.upscale(
            scan, input_voxel_size=1.0, voxel_size=cases.REFERENCE_TARGET, model=network, threads=threads, device="cpu",
            return_info=True,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
    if not np.isfinite(out).all() or out.std() == 0:
        raise RuntimeError("scaling: the result is not finite, or constant")
    return {
        "edge": edge,
        "threads": threads,
        "voxels": int(out.size),
        "seconds": round(min(seconds[1:] or seconds), 3),
        "first_call_s": round(seconds[0], 3),
        "peak_bytes": peak_resident(),
        "held_before_bytes": before,
        "active_fraction": round(info.tiles.active_fraction, 3),
        "engine": info.engine.name,
    }


def table(content: dict) -> str:
    """What is worth reading, as text."""
    lines = ["threads  target voxels   seconds   ns/voxel   peak GB"]
    for r in content["rows"]:
        ns = r["seconds"] / r["voxels"] * 1e9
        lines.append(
            f"{r['threads']:7}  {r['voxels']:13,}  {r['seconds']:8.2f}   {ns:8.0f}  {r['peak_bytes'] / 1e9:8.2f}"
        )
    lines += [f"{threads} thread(s): {json.dumps(fit)}" for threads, fit in content["fits"].items()]
    return "\n".join([*lines, f"more threads, times faster by voxels: {json.dumps(content['speed_up'])}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--factors", nargs="+", type=float, default=FACTORS)
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--base", type=int, default=96, help="edge of the cube of factor 1, voxels")
    parser.add_argument("--model", default="base", help='a shipped name, a path, or "random"')
    parser.add_argument("--repeats", type=int, default=2)
    record.add_place(parser)
    parser.add_argument("--edge", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        args.answer.write_text(json.dumps(measure(args.edge, args.threads[0], args.model, args.repeats)))
        return 0
    print(table(run(args.factors, args.threads, args.base, args.model, args.repeats, args.results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
