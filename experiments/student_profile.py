"""Which operators the student's time on a CPU goes to: PyTorch's own operators, and ours over slabs.

    python experiments/student_profile.py [--threads 2] [--shape 128 160 128]

"before" is the module's forward on PyTorch's separate operators, as a contiguous network and channels-last; "after" is
the engine that `mrisr.upscale(..., engine="torch")` uses. Writes student_profile.json and student_profile.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import cases
import checkout  # noqa: F401
import record

SHOWN = 0.005  # share of the time below which an operator is not listed


def run(shape=(128, 160, 128), threads: int = 2, model: str = "base", folder: Path = record.UNRECORDED) -> dict:
    """Profile, write the two files into `folder`, and return the content."""
    import copy

    import torch
    from end_to_end import load

    from mrisr import ops
    from mrisr.infer.engines.torch import TorchEngine

    torch.set_num_threads(threads)
    net = load(model).denoiser.net.eval().requires_grad_(False)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last_3d)
    given = cases.network_inputs(shape)

    def before(network):
        with ops.use_backend("rms_norm=reference"):
            return network(*given)

    slabs = TorchEngine(net, torch.device("cpu"), threads).prepare(shape)
    calls = {
        "before, contiguous": lambda: before(net),
        "before, channels-last": lambda: before(last),
        "after, the engine's slabs": lambda: slabs(*given),
    }
    content = {"shape": list(shape), "threads": threads, "profiles": {n: _profile(c) for n, c in calls.items()}}
    record.write("student_profile", content, folder)
    (folder / "student_profile.md").write_text(
        table(json.loads((folder / "student_profile.json").read_text())), encoding="utf-8"
    )
    return content


def _profile(call) -> dict:
    """Seconds without the profiler, and the share and the calls of every operator with it."""
    import time

    import torch
    from torch.profiler import ProfilerActivity, profile

    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            call()
    events = found.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    rows = sorted(events, key=lambda e: -e.self_cpu_time_total)
    return {
        "seconds": round(min(seconds), 3),
        "operators": [
            {"name": e.key, "share": round(e.self_cpu_time_total / total, 4), "calls": e.count}
            for e in rows
            if e.self_cpu_time_total / total >= SHOWN
        ],
    }


def table(content: dict) -> str:
    """The profiles as Markdown."""
    m = content["machine"]
    lines = [
        "# Where the student's time goes on a CPU",
        "",
        f"{' x '.join(map(str, content['shape']))} voxels, {content['threads']} threads; {m['cpu']}, load {m['load']}; "
        f"{content['date']}, commit {content['commit']}. Shares are of the profiled run.",
    ]
    for name, found in content["profiles"].items():
        lines += ["", f"## {name}: {found['seconds']:.3f} s", "", "| operator | share | calls |", "|---|---|---|"]
        lines += [f"| {r['name']} | {r['share']:.1%} | {r['calls']} |" for r in found["operators"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 160, 128))
    record.add_place(parser)
    options = parser.parse_args()
    run(tuple(options.shape), options.threads, folder=options.results)
    print((options.results / "student_profile.md").read_text())


if __name__ == "__main__":
    main()
