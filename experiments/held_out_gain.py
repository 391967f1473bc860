"""Gain over cubic of several weights on the held-out people's crops, the cases that training validates on.

Beside them the ceiling: the gain of an answer that misses nothing but the reference's own noise, of which nobody can
know the part beyond the measured band. The noise is estimated (`mrisr.physics.intensity.estimate_noise`), with some
anatomy in it, so the true ceiling lies a little higher.

    python experiments/held_out_gain.py --data SCANS --hold-out t1w_0p9mm_b flair_1mm_p26 t1w_1mm_uih_a \
        --models base teacher-small --out benchmarks/results/held_out.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from datetime import datetime, timezone
from pathlib import Path

import torch

from mrisr.data.sources import find_scans, load_volumes
from mrisr.io.atomic import replacing
from mrisr.train.validate import validate, validation_cases
from mrisr.weights import registry


def ceiling(case, noise: float) -> float:
    """dB over cubic, of noise with standard deviation `noise` beyond the measured band and nothing else."""
    beyond = 1 - math.prod(2 * edge for edge in case.edge)
    return case.psnr(torch.full_like(case.target, noise * math.sqrt(beyond))) - case.psnr(case.cubic)


def _gains(model, cases: dict[str, list]) -> dict[str, float]:
    """Of every case by the network that is for its acquisition; cases: by network."""
    found = {}
    for network, some in cases.items():
        rows = validate(registry.network_of(model, network).denoiser, some)
        found |= {c.name: rows[c.name] for c in some}
    values = list(found.values())
    return {**found, "mean": sum(values) / len(values), "worst": min(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--hold-out", nargs="+", required=True, help="beginnings of the names of the people")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    paths = [p for source in args.data for p in find_scans(source)]
    people = [v for v in load_volumes(paths) if v.name.startswith(tuple(args.hold_out))]
    kinds, rows = {"2d": ("slice",), "3d": ("iso",)}, {}
    cases = {network: validation_cases(people, families=families) for network, families in kinds.items()}
    noise = {v.name.split(".")[0]: v.noise for v in people}
    half = torch.autocast("cpu", torch.bfloat16) if args.precision == "bfloat16" else contextlib.nullcontext()
    for name in args.models:
        model = registry.load(name)
        with half:
            gains = _gains(model, cases)
        rows[Path(name).name] = {"sha256": model.sha256, "gain_db": {k: round(v, 4) for k, v in gains.items()}}
        print(f"{name}: mean {gains['mean']:+.3f} dB, worst {gains['worst']:+.3f} dB over cubic")
    record = {
        "what": "PSNR gain over cubic, dB, mode mean, central 96^3 of people who were not trained on",
        "people": [v.name for v in people],
        "precision": args.precision,
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "reference_noise": {k: round(v, 4) for k, v in noise.items()},
        "ceiling_db": {
            c.name: round(ceiling(c, noise[c.name.split("/")[0]]), 2) for some in cases.values() for c in some
        },
        "models": rows,
    }
    with replacing(args.out, force=True) as beside:
        Path(beside).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
