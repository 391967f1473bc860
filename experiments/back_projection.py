"""How much of what slices hold beyond the network's answer is to go back onto it, where the profile is right and not.

Scans of slices are simulated with one profile from the middle of held-out heads, and answered and projected back by
another, as happens where it is assumed.

    python experiments/back_projection.py --data SCANS --hold-out t1w_0p9mm_b flair_1mm_p26 t1w_1mm_uih_a --record
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.data.sources import find_scans, load_volumes
from mrisr.evaluate.cases import TRAINING
from mrisr.io.atomic import replacing
from mrisr.nn.condition import Condition
from mrisr.ops.resample import apply_axes
from mrisr.physics.degrade import ForwardModel, coarse_grid, degrade, start_matrices
from mrisr.physics.foreground import certain
from mrisr.physics.intensity import estimate_noise
from mrisr.physics.psf import AxisPSF
from mrisr.weights import registry

BLOCK, MARGIN = 96, 16
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
FINE = (1.0, 1.0, 1.0)
# Case, and what the slices truly are where that is not what the case says: kind, width over spacing.
TRUTHS = (
    ("thick4", None),
    ("thick4", ("supergaussian", 1.0)),
    ("thick4", ("gaussian", 0.8)),
    ("thick4", ("gaussian", 1.2)),
    ("thick4", ("kspace", 1.0)),
    ("thick5n", None),
    ("thick5n", ("supergaussian", 1.0)),
)


def middle(data: torch.Tensor) -> torch.Tensor:
    """A block with its margin, sides multiples of 8."""
    spans = [min(n, BLOCK + 2 * MARGIN) // 8 * 8 for n in data.shape]
    return data[tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(data.shape, spans))]


@torch.inference_mode()
def row(volume, name: str, truth: tuple[str, float] | None, denoiser) -> dict:
    """Gains of each share over none, dB."""
    case, x = TRAINING[name], middle(volume.data)
    told = tuple(AxisPSF(kind, float(f)) for kind, f in zip(case.profile, case.factor))
    true = told if truth is None else (*told[:2], AxisPSF(truth[0], truth[1] * case.factor[2]))
    lr = coarse_grid(grids.Grid(tuple(x.shape), np.eye(4)), case.factor)
    between = (x.shape, FINE, lr.shape, lr.voxel_size)
    sigma = case.noise * float(x[certain(x)].median())
    scan = degrade(
        x, ForwardModel.between(*between, true), noise_sigma=sigma, generator=torch.Generator().manual_seed(7)
    )
    model, start = ForwardModel.between(*between, told), start_matrices(lr.shape, lr.voxel_size, x.shape, FINE, told)
    y = apply_axes(scan, start)
    cond = Condition.of_acquisition(told, FINE, estimate_noise(scan), stored=lr.voxel_size)
    answer = y + denoiser.mean(y[None, None], cond).float()[0, 0]
    back = apply_axes(scan - model.forward(answer), start)
    inner = torch.zeros_like(x, dtype=torch.bool)
    inner[tuple(slice(MARGIN, n - MARGIN) for n in x.shape)] = True
    inner &= certain(x)
    errors = [float((x - answer - share * back)[inner].square().mean()) for share in SHARES]
    gains = {str(share): round(10 * float(np.log10(errors[0] / e)), 3) for share, e in zip(SHARES, errors)}
    slices = "as assumed" if truth is None else f"{truth[0]}, {truth[1]:g} of the spacing"
    return {"person": volume.name.split(".")[0], "case": name, "slices": slices, "gain_db": gains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--hold-out", nargs="+", required=True, help="beginnings of the names of the people")
    parser.add_argument("--model", default="base")
    parser.add_argument("--record", action="store_true", help="into benchmarks/results/back_projection.json")
    args = parser.parse_args()
    people = load_volumes([p for source in args.data for p in find_scans(source)])
    model = registry.network_of(registry.load(args.model), "2d")
    rows = []
    for volume in (v for v in people if v.name.startswith(tuple(args.hold_out))):
        for name, truth in TRUTHS:
            rows.append(row(volume, name, truth, model.denoiser))
            print(json.dumps(rows[-1]))
    if args.record:
        record = {
            "command": "python " + " ".join(["experiments/back_projection.py", "--data SCANS", *sys.argv[3:]]),
            "what": "gain in dB of the share of the back-projection, over none; slices answered as the case says",
            "weights": model.sha256,
            "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
            "rows": rows,
        }
        with replacing(Path("benchmarks/results/back_projection.json"), force=True) as beside:
            Path(beside).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
