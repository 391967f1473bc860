"""What bfloat16 costs: every case of the protocol in float32 and in bfloat16, by each engine that has both.

    python benchmarks/precision.py --data SCANS [--held-out NAME ...] [--crop N] [--record]

PSNR, SSIM and chi-squared of both, the largest difference between their pictures as a share of the picture's maximum,
and inserted lesions (counted by the first engine). Fails where a case loses more than 0.01 dB, a picture differs by
more than 5e-3, or a lesion is lost. Writes precision.json and precision.md.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout  # noqa: F401
import record

import mrisr
from mrisr.environment import bfloat16_instructions
from mrisr.errors import MrisrWarning
from mrisr.evaluate.cases import CASES, PROTOCOL, make_trial
from mrisr.evaluate.methods import Network
from mrisr.evaluate.metrics import data_range, psnr, ssim3d
from mrisr.evaluate.protocol import find_volumes, load_subjects
from mrisr.evaluate.safety import lesion_test, residual_chi2

HELD_OUT = ("t1w_0p9mm_b", "flair_1mm_p26")
ENGINES = ("openvino", "torch")
LARGEST_LOSS_DB, LARGEST_DIFFERENCE = 0.01, 5e-3


def rows_of(subject, case, model, threads: int | None, lesions: bool) -> list[dict]:
    """One row per engine."""
    trial = make_trial(subject, case, 0)
    span, rows = data_range(trial.reference), []
    for engine in ENGINES:
        methods = {
            name: Network(model=model, engine=engine, precision=name, threads=threads, stated=True)
            for name in ("float32", "bfloat16")
        }
        images = {name: method(trial) for name, method in methods.items()}
        row = {"subject": trial.subject, "case": case.name, "engine": engine}
        for name, image in images.items():
            row[f"psnr_{name}"] = psnr(trial.reference, image, trial.mask, span)
            row[f"ssim_{name}"] = ssim3d(trial.reference, image, trial.mask, span)
            row[f"chi2_{name}"] = residual_chi2(trial, image)
        apart = np.abs(images["bfloat16"] - images["float32"]).max()
        row["largest_difference"] = float(apart / images["float32"].max())
        if lesions and engine == ENGINES[0]:
            for name, method in methods.items():
                row[f"lesions_{name}"] = lesion_test(subject, case, method, 0).as_dict()
        rows.append(row)
    return rows


def faults(rows: list[dict]) -> list[str]:
    """What is beyond the limits, in words."""
    lines = []
    for row in rows:
        where = f"{row['subject']}, {row['case']}, {row['engine']}"
        loss = row["psnr_float32"] - row["psnr_bfloat16"]
        if loss > LARGEST_LOSS_DB:
            lines.append(f"{where}: loses {loss:.4f} dB")
        if row["largest_difference"] > LARGEST_DIFFERENCE:
            lines.append(f"{where}: differs by {row['largest_difference']:.1e}")
        if row.get("lesions_float32") and _counts(row["lesions_float32"]) != _counts(row["lesions_bfloat16"]):
            lines.append(f"{where}: lesions {row['lesions_float32']} became {row['lesions_bfloat16']}")
    return lines


def _counts(lesions: dict) -> dict:
    """The whole numbers of a lesion test: how many survived, how many appeared."""
    return {name: value for name, value in lesions.items() if isinstance(value, int)}


def render(content: dict) -> str:
    """precision.md."""
    machine = content["machine"]
    lines = [
        "# float32 and bfloat16",
        "",
        f"`{content['command']}` on {machine['cpu']} ({', '.join(content['instructions'])}), {content['date']}, commit "
        f"{content['commit']}. Told the point spread; the middle {content['crop']}^3 voxels of people who were not "
        "trained on. PSNR in dB; difference: the largest between the two pictures, as a share of the maximum.",
        "",
        "| scan | case | engine | PSNR float32 | bfloat16 - float32 | SSIM float32 | bfloat16 - float32 | "
        "chi2 float32 | chi2 bfloat16 | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in content["rows"]:
        chi2 = ["-" if r[f"chi2_{n}"] is None else f"{r[f'chi2_{n}']:.4f}" for n in ("float32", "bfloat16")]
        lines.append(
            f"| {r['subject']} | {r['case']} | {r['engine']} | {r['psnr_float32']:.3f} | "
            f"{r['psnr_bfloat16'] - r['psnr_float32']:+.4f} | {r['ssim_float32']:.4f} | "
            f"{r['ssim_bfloat16'] - r['ssim_float32']:+.5f} | {chi2[0]} | {chi2[1]} | {r['largest_difference']:.1e} |"
        )
    beyond = content["faults"] or ["nothing"]
    lines += ["", f"Beyond the limits ({LARGEST_LOSS_DB} dB, {LARGEST_DIFFERENCE:g}, lesions): {'; '.join(beyond)}."]
    counted = [r for r in content["rows"] if r.get("lesions_float32")]
    if counted:
        names = list(_counts(counted[0]["lesions_float32"]))
        lines += ["", f"Lesions ({ENGINES[0]}), float32 / bfloat16:", ""]
        lines += [f"| scan | case | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
        for r in counted:
            both = (f"{r['lesions_float32'][n]} / {r['lesions_bfloat16'][n]}" for n in names)
            lines.append(f"| {r['subject']} | {r['case']} | {' | '.join(both)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the scans")
    parser.add_argument("--held-out", nargs="+", default=HELD_OUT, metavar="NAME")
    parser.add_argument("--cases", nargs="+", default=list(PROTOCOL), choices=list(CASES), metavar="CASE")
    parser.add_argument("--model", default="base", help="name or .safetensors (default: base)")
    parser.add_argument("--crop", type=int, default=104, metavar="N", help="middle N^3 voxels (default: 104)")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--no-lesions", action="store_true")
    record.add_place(parser)
    args = parser.parse_args()
    warnings.simplefilter("ignore", MrisrWarning)
    model, content = mrisr.load_model(args.model), {}
    for path in find_volumes([args.data / f"{name}.nii.gz" for name in args.held_out]):
        subject = load_subjects(path, args.crop)[0]
        for name in args.cases:  # written after each: a run that is cut short goes on with the cases that are left
            rows = rows_of(subject, CASES[name], model, args.threads, not args.no_lesions)
            content = keep(rows, model, args)
            print("\n".join(map(str, rows)), file=sys.stderr, flush=True)
    print(render({**content, **record.circumstances()}))
    print("\n".join(content["faults"]) or "within the limits")
    return 1 if content["faults"] else 0


def keep(rows: list[dict], model, args) -> dict:
    """Write rows beside those that the files hold already; the content."""
    name = Path(args.model).name
    same = {
        "model": {"name": name, "sha256": model.sha256},
        "instructions": list(bfloat16_instructions()),
        "crop": args.crop,
    }
    rows = record.merged("precision", rows, ("subject", "case", "engine"), args.results, same)
    rows.sort(key=lambda row: (row["subject"], list(CASES).index(row["case"]), row["engine"]))
    command = f"python benchmarks/precision.py --data SCANS --model {name} --crop {args.crop}"
    content = {"command": command, **same, "rows": rows, "faults": faults(rows)}
    path = record.write("precision", content, args.results)
    text = render({**content, **record.circumstances()})
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return content


if __name__ == "__main__":
    sys.exit(main())
