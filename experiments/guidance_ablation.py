"""What undoing gradient nonlinearity and bias fields buys, and what telling the network of it buys.

python experiments/guidance_ablation.py --data SCANS --model base

Distortions are sums of Gaussian bumps and fields those of receive coils outside of the head: neither is what training
draws (solid harmonics, spline lattices). Every scan is a held-out head, shaded or displaced, acquired with noise. Three
ways bring it back: as it is; corrected; corrected with the network told of it. Writes guidance.json, guidance.md and a
picture into benchmarks/results.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import numpy as np
import record
import torch
from PIL import Image

import mrisr
from mrisr.errors import MrisrWarning
from mrisr.evaluate.cases import CASES, Trial, make_trial
from mrisr.evaluate.metrics import data_range, psnr
from mrisr.evaluate.protocol import find_volumes, load_subjects
from mrisr.grid import Grid, plan
from mrisr.infer.corrections import learnt
from mrisr.ops.resample import apply_axes
from mrisr.physics import bias, gradnl, smooth
from mrisr.physics.degrade import ForwardModel, coarse_grid, degrade, start_matrices
from mrisr.physics.psf import AxisPSF

HELD_OUT = ("t1w_0p9mm_b", "flair_1mm_p26")
LEVELS_MM = (0.0, 1.0, 3.0, 6.0)  # largest displacement
LEVELS_BIAS = (0.1, 0.2, 0.4)  # standard deviation of the logarithm within the head
WAYS = {"nothing": (False, False), "corrected": (True, False), "corrected, told": (True, True)}
NOISE = 0.01  # of the median of the head
RIM = 14  # voxels of the crop where what was outside of it may be displaced to
BLOCK, SEARCH, APART = 10, 10, 12  # voxels: half a block, how far it is looked for, and from one block to the next
FACTORS = (1.2, 1.5, 2.0, 3.0)  # of the table of starts


@dataclass(frozen=True, eq=False)
class Bumps:
    """Displacement: sum of Gaussian bumps a_k exp(-|r - c_k|^2 / 2 w_k^2), and its gradient.

    Attributes: centres [K, 3] mm, widths [K] mm, heights [K, 3] mm.
    """

    centres: torch.Tensor
    widths: torch.Tensor
    heights: torch.Tensor
    degree = None
    name = "Gaussian bumps"

    @classmethod
    def random(cls, rng: np.random.Generator, grid: Grid, largest: float) -> Bumps:
        """Eight bumps about a field of view whose largest displacement in it is `largest` mm."""
        spread = 0.35 * max(grid.extent)
        centres = torch.from_numpy(grid.center + spread * rng.normal(size=(8, 3)))
        plain = cls(centres, torch.from_numpy(rng.uniform(25, 50, 8)), torch.from_numpy(rng.normal(size=(8, 3))))
        corners = smooth.world(grid.affine, [np.linspace(0, n - 1, 13) for n in grid.shape])
        return replace(
            plain, heights=plain.heights * (largest / float(plain.displacement_at(corners).norm(dim=0).max()))
        )

    def _terms(self, points):
        apart = points[None] - self.centres[..., None].to(points)
        widths = self.widths.to(points)[:, None]
        return apart, widths, torch.exp(-0.5 * apart.square().sum(1) / widths**2)

    def displacement_at(self, points: torch.Tensor) -> torch.Tensor:
        return self.heights.T.to(points) @ self._terms(points)[2]

    def gradient_at(self, points: torch.Tensor) -> torch.Tensor:
        apart, widths, values = self._terms(points)
        slopes = -apart * (values / widths**2)[:, None]
        return torch.einsum("ka,kbp->abp", self.heights.to(points), slopes)


def coil_field(rng: np.random.Generator, grid: Grid, mask: np.ndarray, log_std: float) -> torch.Tensor:
    """Shading of four receive coils outside of the head, geometric mean 1 and `log_std` within the mask."""
    points = smooth.world(grid.affine, [np.arange(n) for n in grid.shape]).numpy()
    reach = 0.5 * max(grid.extent)
    total = np.full(points.shape[1], 0.05)
    for _ in range(4):
        direction = rng.normal(size=3)
        place = grid.center + rng.uniform(1.2, 2.0) * reach * direction / np.linalg.norm(direction)
        total += 1 / (1 + ((points - place[:, None]) ** 2).sum(0) / reach**2) ** 1.5
    log = np.log(total).reshape(grid.shape)
    log = (log - log[mask].mean()) * (log_std / log[mask].std())
    return torch.from_numpy(np.exp(log).astype(np.float32))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the scans")
    parser.add_argument("--model", default="base", help="name or .safetensors (default: base)")
    parser.add_argument("--held-out", nargs="+", default=HELD_OUT, metavar="NAME")
    parser.add_argument("--cases", nargs="+", default=["iso2", "thick4"], choices=list(CASES), metavar="CASE")
    parser.add_argument("--crop", type=int, default=104, metavar="N", help="middle N^3 voxels (default: 104)")
    parser.add_argument("--threads", type=int, default=None, metavar="N")
    record.add_place(parser, "--out")
    args = parser.parse_args()
    warnings.simplefilter("ignore", MrisrWarning)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    model = mrisr.load_model(args.model)
    rows, starts = [], []
    for path in find_volumes([args.data / f"{name}.nii.gz" for name in args.held_out]):
        subject = load_subjects(path, args.crop)[0]
        starts += starts_of(subject)
        for name in args.cases:
            trial = make_trial(subject, CASES[name])
            rows += displaced_rows(trial, model, args)
            rows += shaded_rows(trial, model, args)
            print("\n".join(map(str, rows[-4:])), file=sys.stderr, flush=True)
    about = {"name": Path(args.model).name, "sha256": model.sha256, "guidance": list(learnt(model.meta))}
    same = {"model": about, "crop": args.crop}
    content = {
        "command": f"python experiments/guidance_ablation.py --data SCANS --model {Path(args.model).name} "
        f"--crop {args.crop} --cases {' '.join(args.cases)}",
        **same,
        "starts": starts,
        "rows": record.merged("guidance", rows, ("subject", "case", "way", "level_mm"), args.results, same),
    }
    record.write("guidance", content, args.results)
    (args.results / "guidance.md").write_text(render(content), encoding="utf-8")
    return 0


def displaced_rows(trial: Trial, model, args) -> list[dict]:
    """Every level of displacement in every way, and a picture of the largest."""
    rows, inner = [], inside(trial)
    for level in LEVELS_MM:
        x, distortion = torch.from_numpy(trial.reference), None
        if level:
            distortion = Bumps.random(np.random.default_rng(11), trial.fine, level)
            x = gradnl.simulation(distortion, trial.fine).forward(x)
        scan, images = acquired(trial, x), {}
        for way, (corrected, told) in WAYS.items():
            if (corrected and not level) or (told and "gradnl" not in learnt(model.meta)):
                continue
            found, info = upscaled(trial, scan, model, told, args, gradnl=distortion if corrected else None)
            images[way] = found
            moved = apart(trial, found, inner)
            rows.append(
                {
                    **row(trial, way, found, inner),
                    "level_mm": level,
                    "det": info.gradnl.det if corrected else None,
                    "median_mm": float(np.median(moved)),
                    "p95_mm": float(np.percentile(moved, 95)),
                }
            )
        if level == LEVELS_MM[-1]:
            picture(trial, images, args.results / "pictures" / f"guidance_{trial.subject}_{trial.case.name}.png")
    return rows


def shaded_rows(trial: Trial, model, args) -> list[dict]:
    """Every level of shading in every way, and with the field that N4 finds. That takes out the head's own, too,
    so that it is judged by the reference as N4 leaves it."""
    rows, inner = [], inside(trial)
    flat = trial.reference / bias.estimate(trial.reference, trial.fine.voxel_size).numpy()
    for level in LEVELS_BIAS:
        field = coil_field(np.random.default_rng(12), trial.fine, trial.mask, level)
        there = bias.on_grid(field, trial.fine, trial.coarse).numpy()
        scan = acquired(trial, torch.from_numpy(trial.reference) * field)
        for way, (corrected, told) in {**WAYS, "estimated (N4)": (True, False)}.items():
            if told and "bias" not in learnt(model.meta):
                continue
            given = "auto" if way.startswith("estimated") else there if corrected else None
            found, info = upscaled(trial, scan, model, told, args, bias=given)
            reference = trial.reference
            if isinstance(given, str):  # known up to a factor
                reference = flat * np.median(found[inner] / np.maximum(flat[inner], 1e-6))
            rows.append({**row(trial, way, found, inner, reference), "level_log_std": level, "span": info.bias.span})
    return rows


def acquired(trial: Trial, x: torch.Tensor) -> np.ndarray:
    sigma = NOISE * float(np.median(trial.reference[trial.mask]))
    return degrade(x, trial.model, noise_sigma=sigma, generator=torch.Generator().manual_seed(13)).numpy()


def upscaled(trial: Trial, scan: np.ndarray, model, told: bool, args, **options):
    """(result on the trial's fine grid, info); the network is told of corrections or not."""
    meta = model.meta if told else {**model.meta, "guidance": []}
    return mrisr.upscale(
        scan,
        affine=trial.coarse.affine,
        voxel_size=trial.fine.voxel_size,
        model=replace(model, meta=meta),
        psf=trial.psf,
        consistency="off",
        gradnl_done="none",
        threads=args.threads,
        return_info=True,
        **options,
    )


def inside(trial: Trial) -> np.ndarray:
    """The head, without the rim of the crop."""
    inner = np.zeros(trial.mask.shape, bool)
    inner[RIM:-RIM, RIM:-RIM, RIM:-RIM] = True
    return inner & trial.mask


def row(trial: Trial, way: str, found: np.ndarray, inner: np.ndarray, reference: np.ndarray | None = None) -> dict:
    reference = trial.reference if reference is None else reference
    return {
        "subject": trial.subject,
        "case": trial.case.name,
        "way": way,
        "psnr": psnr(reference, found, inner, data_range(reference)),
    }


def apart(trial: Trial, found: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """How far blocks of the result lie from where the reference has them, mm: the best correlation within `SEARCH`
    voxels, and from there the shift that explains the difference by the gradient."""
    shape, reach = found.shape, BLOCK + SEARCH
    lattice = np.stack(np.meshgrid(*[np.arange(reach, n - reach, APART) for n in shape], indexing="ij"), -1)
    sizes, distances = np.array(trial.fine.voxel_size), []
    for centre in lattice.reshape(-1, 3):
        block = tuple(slice(c - BLOCK, c + BLOCK) for c in centre)
        if inner[block].mean() < 0.9:
            continue
        shift = whole_shift(trial.reference[block], found[tuple(slice(c - reach, c + reach) for c in centre)])
        moved = found[tuple(slice(c - BLOCK + s, c + BLOCK + s) for c, s in zip(centre, shift))]
        slopes = np.stack([g.ravel() for g in np.gradient(0.5 * (moved + trial.reference[block]))])
        design = np.vstack([slopes, moved.ravel(), np.ones(moved.size)])
        rest = np.linalg.lstsq(design.T, (trial.reference[block] - moved).ravel(), rcond=None)[0][:3]
        distances.append(np.linalg.norm((shift + np.clip(rest, -1, 1)) * sizes))
    return np.array(distances)


def whole_shift(template: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The shift in voxels [-SEARCH, SEARCH]^3 of largest normalised correlation."""
    size, axes = image.shape, (0, 1, 2)
    flat = template - template.mean()

    def correlated(a, b):
        spectrum = np.fft.rfftn(a, size, axes) * np.conj(np.fft.rfftn(b, size, axes))
        return np.fft.irfftn(spectrum, size, axes)[(slice(2 * SEARCH + 1),) * 3]

    ones = np.ones_like(template)
    count = template.size
    spread = correlated(image**2, ones) - correlated(image, ones) ** 2 / count
    score = correlated(image, flat) / np.sqrt(np.maximum(spread, 1e-3 * spread.max()))
    return np.array(np.unravel_index(score.argmax(), score.shape)) - SEARCH


def starts_of(subject) -> list[dict]:
    """PSNR of the start alone, 3 mm displaced, by the order of its interpolations."""
    x = torch.from_numpy(subject.data)
    distortion = Bumps.random(np.random.default_rng(11), subject.grid, 3.0)
    shown = gradnl.simulation(distortion, subject.grid).forward(x)
    inner, span, rows = np.zeros(x.shape, bool), data_range(subject.data), []
    inner[RIM:-RIM, RIM:-RIM, RIM:-RIM] = True
    inner &= subject.mask
    for factor in FACTORS:
        hr, lr = subject.grid, coarse_grid(subject.grid, factor)
        psf = tuple(AxisPSF("kspace", v) for v in lr.voxel_size)
        model = ForwardModel.between(hr.shape, hr.voxel_size, lr.shape, lr.voxel_size, psf)
        matrices = start_matrices(lr.shape, lr.voxel_size, hr.shape, hr.voxel_size, psf)
        scan = model.forward(shown)
        between = plan(lr, voxel_size=hr.voxel_size)
        filled = apply_axes(scan, start_matrices(lr.shape, lr.voxel_size, between.shape, between.voxel_size, psf))
        starts = {
            "undistorted": apply_axes(model.forward(x), matrices),
            "zero-filled, then one spline": gradnl.correction(distortion, between, hr).forward(filled),
            "one spline from the coarse grid": gradnl.correction(distortion, lr, hr).forward(scan),
            "uncorrected": apply_axes(scan, matrices),
        }
        figures = {name: psnr(subject.data, image.numpy(), inner, span) for name, image in starts.items()}
        rows.append({"subject": subject.name, "factor": factor, **figures})
    return rows


def picture(trial: Trial, images: dict, path: Path) -> None:
    """Reference and results in the middle slices, their errors (four times as bright) below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    middle = trial.reference.shape[2] // 2
    span = float(np.percentile(trial.reference[:, :, middle], 99))
    shown = {"reference": trial.reference, **images}
    top = [np.clip(v[:, :, middle] / span, 0, 1) for v in shown.values()]
    errors = [np.clip(4 * np.abs(v - trial.reference)[:, :, middle] / span, 0, 1) for v in shown.values()]
    sheet = np.concatenate([np.concatenate([t.T[::-1] for t in line], 1) for line in (top, errors)], 0)
    image = Image.fromarray((255 * sheet).astype(np.uint8))
    image.resize([2 * n for n in image.size], Image.BICUBIC).quantize(32).save(path, optimize=True)


def render(content: dict) -> str:
    """guidance.md"""
    model = content["model"]
    learnt = ", ".join(model["guidance"]) or "nothing, so that the rows 'told' are left out"
    lines = ["# Guidance", "", f"`{content['command']}`", "", f"Model {model['name']}; it has learnt to be told of: "]
    lines[-1] += f"{learnt}. Distortions are Gaussian bumps, fields those of receive coils: not what training draws."
    lines += [
        "",
        "## Displacement",
        "",
        "| largest, mm | way | PSNR, dB | median, mm | p95, mm |",
        "|---|---|---|---|---|",
    ]
    displaced = [r for r in content["rows"] if "level_mm" in r]
    for level in LEVELS_MM:
        for way in WAYS:
            some = [r for r in displaced if r["level_mm"] == level and r["way"] == way]
            if some:
                psnrs, medians, p95s = (np.mean([r[k] for r in some]) for k in ("psnr", "median_mm", "p95_mm"))
                lines.append(f"| {level:g} | {way} | {psnrs:.2f} | {medians:.2f} | {p95s:.2f} |")
    lines += ["", "## Bias field", "", "| log-std | way | PSNR, dB |", "|---|---|---|"]
    shaded = [r for r in content["rows"] if "level_log_std" in r]
    for level in LEVELS_BIAS:
        for way in (*WAYS, "estimated (N4)"):
            some = [r["psnr"] for r in shaded if r["level_log_std"] == level and r["way"] == way]
            if some:
                lines.append(f"| {level:g} | {way} | {np.mean(some):.2f} |")
    lines += ["", "## The start alone, displaced by up to 3 mm, k-space cut", ""]
    names = [name for name in content["starts"][0] if name not in ("subject", "factor")]
    lines += ["| scan | factor | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for r in content["starts"]:
        lines.append(f"| {r['subject']} | {r['factor']:g} | " + " | ".join(f"{r[n]:.2f}" for n in names) + " |")
    said = "PSNR in dB within the head, mean over scans and cases. What N4 estimates is judged by the reference as N4 "
    return "\n".join([*lines, "", said + "leaves it, for it takes out the head's own shading, too.", ""])


if __name__ == "__main__":
    sys.exit(main())
