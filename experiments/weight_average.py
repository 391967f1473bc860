"""Averages of two networks of one preset between which training has moved (Wortsman et al. 2022, arXiv 2203.05482).

    python experiments/weight_average.py --data SCANS A.safetensors B.safetensors --shares 0 0.5 1 [--save OUT 0.6]

For every share of B: gain over cubic of the posterior mean on the validation cases of the held-out people, dB, and of
samples in 1, 2 and 4 steps, as `mrisr train` logs them. Writes weight_average.json into benchmarks/results. `--save`
writes one average as weights, with the header of B.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import record

from mrisr.data.sources import find_scans, load_volumes
from mrisr.train import checkpoint
from mrisr.train.validate import validate, validate_samples, validation_cases
from mrisr.weights import registry

HELD_OUT = ("t1w_0p9mm_b", "flair_1mm_p26", "t1w_1mm_uih_a")


def averaged(first, second, share: float):
    """A copy of the denoiser `first` with `share` of the weights of `second` and the rest its own."""
    found, other = copy.deepcopy(first), second.net.state_dict()
    own = found.net.state_dict()
    found.net.load_state_dict({name: (1 - share) * own[name] + share * other[name] for name in own})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs=2, metavar="W", help="of one preset and one sigma_data")
    parser.add_argument("--data", required=True, metavar="SCANS", help="folder that holds the held-out people")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="of the second")
    parser.add_argument("--save", nargs=2, metavar=("OUT", "SHARE"))
    record.add_place(parser)
    options = parser.parse_args()
    first, second = (registry.load(path) for path in options.weights)
    if (first.meta["preset"], first.denoiser.sigma_data) != (second.meta["preset"], second.denoiser.sigma_data):
        parser.error("the two are not of one preset and sigma_data, so that their average means nothing")
    few = second.meta.get("few_steps", [])
    if "few_steps" not in first.meta:
        checkpoint.forget_step_share(first.denoiser.net)
    if options.save:
        net = averaged(first.denoiser, second.denoiser, float(options.save[1])).net
        checkpoint.export_weights(Path(options.save[0]), net.state_dict(), second.meta)
        return 0
    paths = [path for path in find_scans(options.data) if path.name.startswith(HELD_OUT)]
    cases, rows = validation_cases(load_volumes(paths)), []
    for share in options.shares:
        denoiser = averaged(first.denoiser, second.denoiser, share)
        rows.append({"share": share, **validate(denoiser, cases), **validate_samples(denoiser, cases, few)})
        print(share, {name: round(value, 3) for name, value in rows[-1].items() if "/" not in name}, flush=True)
    shares = " ".join(f"{share:g}" for share in options.shares)
    command = f"python experiments/weight_average.py --data SCANS EARLIER LATER --shares {shares}"
    record.write(
        "weight_average", {"command": command, "sha256": [first.sha256, second.sha256], "rows": rows}, options.results
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
