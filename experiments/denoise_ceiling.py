"""What taking all noise out of a scan could gain at most: the network's answer to the scan without its noise, beside
that to the scan, and what chi-squared a gain implies.

    python experiments/denoise_ceiling.py --data SCANS --hold-out t1w_0p9mm_b flair_1mm_p26 t1w_1mm_uih_a --record

The residual of a posterior mean is smaller than the noise: E|y - E[x|y]|^2 = sigma^2 - E|x - E[x|y]|^2 (Stein, Ann.
Statist. 9(6), 1981), so that removing noise by g dB leaves a chi-squared of 1 - 10^(-g/10) where the resolution stays.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import record

from mrisr.data.sources import find_scans
from mrisr.evaluate import metrics
from mrisr.evaluate.cases import CASES, make_trial
from mrisr.evaluate.methods import Network
from mrisr.evaluate.protocol import load_subjects

AIM = 1.5  # dB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--hold-out", nargs="+", required=True, help="beginnings of the names of the people")
    parser.add_argument("--cases", nargs="+", default=["iso2n", "mix"], help="with noise")
    parser.add_argument("--crop", type=int, default=112)
    record.add_place(parser)
    args = parser.parse_args()
    paths = [p for source in args.data for p in find_scans(source) if p.name.startswith(tuple(args.hold_out))]
    network, rows = Network(threads=1), []
    for path in paths:
        subject = load_subjects(path, args.crop)[0]
        for name in args.cases:
            trials = {"noisy": make_trial(subject, CASES[name])}
            trials["clean"] = make_trial(subject, replace(CASES[name], noise=0.0))
            psnr = {kind: _psnr(network(trial), trials["noisy"]) for kind, trial in trials.items()}
            rows.append({"scan": subject.name, "case": name, **psnr, "ceiling": psnr["clean"] - psnr["noisy"]})
            print(f"{subject.name} {name}: {rows[-1]['ceiling']:+.2f} dB")
    chi2 = {f"{gain:g}": 1 - 10 ** (-gain / 10) for gain in (0.5, 1.0, AIM, 2.0)}
    what = "PSNR in the head, dB: the answer to the scan without its noise against that to the scan; chi2 by gain"
    print(record.write("denoise_ceiling", {"what": what, "crop": args.crop, "rows": rows, "chi2": chi2}, args.results))


def _psnr(answer, trial) -> float:
    return metrics.psnr(trial.reference, answer, trial.mask, metrics.data_range(trial.reference))


if __name__ == "__main__":
    main()
