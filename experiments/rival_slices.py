"""A rival that can be had, side by side, on slices of four voxels: SOUP-GAN (Zhang et al. 2021, arXiv 2106.02599).

    pip download --no-deps --no-binary :all: KevinSR==0.1.19    # the last one that ships its weights; unpack it
    python experiments/rival_slices.py --rival KevinSR-0.1.19/KevinSR/Thin-to-thin --data SCANS --models base

The rival's network runs in OpenVINO, which reads its TensorFlow graph. It was made for an interpolation that puts the
centres of the end slices on the ends of the result; here it gets `cubic` in the exact places, or its picture would be
compared half a slice off.
"""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from mrisr.evaluate.baselines import BASELINES
from mrisr.evaluate.cases import CASES, make_trial
from mrisr.evaluate.methods import Interpolation, Network
from mrisr.evaluate.protocol import evaluate_trial, find_volumes, load_subjects
from mrisr.io.atomic import replacing
from mrisr.weights import registry

LARGEST = 10_000.0  # what the rival scales its input to
FOUR = np.float32([[0, 0, 1, 0, 0]])  # its code for four slices out of one


class Rival:
    """KevinSR's network: three-dimensional, slices first, intensities from 0 to 10 000."""

    def __init__(self, folder: Path):
        import openvino

        core = openvino.Core()
        model = core.compile_model(openvino.convert_model(str(folder)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self._request = model.create_infer_request()

    def __call__(self, trial) -> np.ndarray:
        fine = BASELINES["cubic"](trial.scan, trial.coarse, trial.fine)
        low, high = float(fine.min()), float(fine.max())
        scaled = (fine - low) * (LARGEST / (high - low))
        found = self._request.infer([np.moveaxis(scaled, 2, 0)[None, ..., None].astype(np.float32), FOUR])
        answer = np.moveaxis(next(iter(found.values()))[0, ..., 0], 0, 2)
        return np.ascontiguousarray(answer) * ((high - low) / LARGEST) + low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rival", type=Path, required=True, help="folder of the TensorFlow graph")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--hold-out", nargs="+", required=True, help="beginnings of the names of the people")
    parser.add_argument("--models", nargs="+", default=["base"])
    parser.add_argument("--crop", type=int, default=112)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    methods = {"cubic": Interpolation("cubic"), "KevinSR": Rival(args.rival)}
    methods.update({name: Network(model=name) for name in args.models})
    rows = []
    for path in find_volumes(args.data):
        if not path.name.startswith(tuple(args.hold_out)):
            continue
        for subject in load_subjects(path, args.crop):
            for row in evaluate_trial(make_trial(subject, CASES["thick4"]), methods):
                kept = ("volume", "method", "psnr", "gain", "ssim", "hfen", "fsc_gain", "seconds")
                rows.append({name: getattr(row, name) for name in kept})
                print(
                    row.volume, row.method, f"{row.gain:+.2f} dB, SSIM {row.ssim:.4f}, {row.seconds:.1f} s", flush=True
                )
    record = {
        "what": "thick4 of the protocol, the middle of the head",
        "crop": args.crop,
        "rival": "KevinSR 0.1.19, Thin-to-thin, by OpenVINO in float32; its Thick-to-thin weights are in no package",
        "models": {name: registry.load(name).sha256 for name in args.models},
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "rows": [{k: v if isinstance(v, str) else round(v, 4) for k, v in row.items()} for row in rows],
    }
    with replacing(args.out, force=True) as beside:
        Path(beside).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
