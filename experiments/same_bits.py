"""Small jobs of every kind by two commits on this machine: the same bits, or by how much they differ.

    python experiments/same_bits.py [BEFORE AFTER] [--only WORDS] [--record]

Each commit runs in a process that imports its own mrisr; both use the native core of this checkout, so what is compared
is the Python around it. Networks are random ones, the same for both: their answers are no picture, but any change on
the way shows. The default are the commits before and after infer became plan, then run. Writes same_bits.json and
same_bits.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import cases
import checkout  # noqa: F401
import record
import versus

BEFORE, AFTER = "e85ff0a", "fe47889"
ENGINES = ("torch", "openvino")


def jobs() -> dict[str, tuple]:
    """Name -> (scan, network, options of mrisr.upscale)."""
    import numpy as np

    from mrisr.volume import Volume

    head, thick = cases.head((40, 48, 36)), Volume(cases.head((40, 44, 12)), np.diag([1.2, 1.1, 4.0, 1.0]))
    scan, frames = Volume(head, np.eye(4)), Volume(np.stack([head, 2 * np.roll(head, 2, 0)], -1), np.eye(4))
    template = cases.reference_scan("mni")[60:110, 80:130, 70:115]
    field = ((1 + 0.01 * np.arange(48))[None, :, None] * np.ones(head.shape)).astype(np.float32)
    sampled = dict(mode="sample", steps=3, samples=2, seed=3)
    of_engines = {
        "thick slices": (thick, "local", dict(voxel_size=(1.2, 1.1, 1.0))),
        "thick slices, profile stated": (thick, "local", dict(voxel_size=(1.2, 1.1, 1.0), psf="gaussian")),
        "template": (Volume(template.copy(), np.eye(4)), "local", dict(voxel_size=0.8)),
        "tiles": (scan, "local", dict(factor=2, tile=48)),
        "samples": (scan, "local", dict(factor=1.5, **sampled)),
        "samples in tiles": (scan, "local", dict(factor=1.5, tile=48, **sampled)),
        "4D": (frames, "local", dict(factor=1.5)),
        "4D in tiles": (frames, "local", dict(factor=2, tile=56)),
        "mirrorings": (scan, "local", dict(factor=1.5, ensemble=2)),
        "gradients and bias field": (scan, "local", dict(factor=1.5, gradnl=Bend(), gradnl_done="none", bias=field)),
        "bias field kept, mirrorings": (scan, "local", dict(factor=1.5, bias=field, bias_out="kept", ensemble=2)),
        "mask, not negative, cut": (
            thick,
            "local",
            dict(voxel_size=(1.2, 1.1, 1.0), mask=thick.data > 100, nonnegative=True, ends="crop"),
        ),
    }
    found = {f"{name}, {e}": (s, n, {**o, "engine": e}) for name, (s, n, o) in of_engines.items() for e in ENGINES}
    return found | {
        "exact": (scan, "local", dict(factor=1.5, tile="exact")),
        "exact, group norm": (scan, "teacher-small", dict(factor=1.5, tile="exact")),
        "exact, 4D": (frames, "local", dict(factor=1.5, tile="exact")),
        "whatever is chosen": (scan, "local", dict(factor=2)),
    }


class Bend:
    """A linear displacement, in place of a scanner's gradients."""

    name, degree = "bend", 1

    def displacement_at(self, points):
        import torch

        return torch.stack([0.01 * points[0] + 0.3, -0.008 * points[1], 0.006 * points[2]])

    def gradient_at(self, points):
        slope = points.new_zeros(3, 3, points.shape[1])
        slope[0, 0], slope[1, 1], slope[2, 2] = 0.01, -0.008, 0.006
        return slope


def network(kind: str):
    """A LoadedModel with random weights everywhere, the same every time."""
    import torch

    from mrisr.diffusion.precond import Denoiser
    from mrisr.nn.presets import PRESETS
    from mrisr.nn.unet import UNet, UNetConfig
    from mrisr.weights.registry import LoadedModel

    small = UNetConfig(widths=(16, 16, 32), encoder=(1, 1), middle=1, decoder=(1, 1), embed=32)
    torch.manual_seed(0)
    net = UNet({"local": small, **PRESETS}[kind]).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    meta = {"guidance": ["gradnl", "bias"], "trained_range": {}, "few_steps": [2]} if kind == "local" else {}
    return LoadedModel(Denoiser(net, 0.05), f"random {kind}", meta, "", None)


def compute(root: str, folder: Path, only: str) -> dict[str, str]:
    """Run the jobs with the mrisr of `root`, results into folder/N.npy; name -> N, or the text of an error."""
    versus.own(root)
    import numpy as np

    import mrisr
    from mrisr.infer import memory

    memory.resident, memory.available = lambda: 500 * memory.MB, lambda: 20 * 10**9  # budgets of both are the same
    warnings.simplefilter("ignore")
    networks, done = {}, {}
    for number, (name, (scan, kind, options)) in enumerate(jobs().items()):
        if only not in name:
            continue
        if kind not in networks:
            networks[kind] = network(kind)
        try:
            result, info = mrisr.upscale(scan, model=networks[kind], threads=1, return_info=True, **options)
        except mrisr.errors.MrisrError as error:
            done[name] = f"{type(error).__name__}: {error}"
            continue
        parts = [result.data] + ([] if info.std is None else [info.std.data])
        np.save(folder / f"{number}.npy", np.stack([np.asarray(p, np.float32) for p in parts]))
        done[name] = str(number)
    return done


def compare(before: Path, after: Path, only: str) -> list[dict]:
    """Every job of both, one after the other."""
    import numpy as np

    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        words = ["--only", only, "--arrays"]
        one, two = (versus.run(root, __file__, *words, to) for root, to in ((before, first), (after, second)))
        rows = []
        for name in one:
            row = {"job": name, "same_bits": False, "difference": None}
            if one[name].isdigit() and two.get(name, "").isdigit():
                a, b = (np.load(Path(to) / f"{done[name]}.npy") for to, done in ((first, one), (second, two)))
                row["same_bits"] = a.shape == b.shape and a.tobytes() == b.tobytes()
                if a.shape == b.shape:
                    row["difference"] = float(np.abs(a - b).max() / np.ptp(a))
            else:
                row |= {"same_bits": one[name] == two.get(name), "before": one[name], "after": two.get(name)}
            rows.append(row)
    return rows


@contextmanager
def files_of(revision: str) -> Iterator[Path]:
    """A folder with the files of a commit and the native core of this checkout."""
    with tempfile.TemporaryDirectory(prefix="mrisr-") as folder:
        words = ["git", "-C", str(record.ROOT), "archive", versus.commit_of(revision), "mrisr", "kernels"]
        archive = subprocess.run(words, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        for path in (*(record.ROOT / "mrisr").glob("_native*"), record.ROOT / "mrisr" / "_build_info.py"):
            shutil.copy2(path, Path(folder) / "mrisr")
        yield Path(folder)


def page(content: dict) -> str:
    """The comparison as Markdown."""
    lines = [
        "# The same bits, before and after",
        "",
        f"Small jobs by commits {content['before'][:7]} and {content['after'][:7]}, one after the other on one machine "
        f"({content['machine']['cpu']}, {content['date']}), by `experiments/same_bits.py`: "
        f"{sum(r['same_bits'] for r in content['rows'])} of {len(content['rows'])} are the same bit for bit. "
        "Difference: the largest of any voxel, of the range.",
        "",
        "| job | same bits | difference |",
        "|---|---|---:|",
    ]
    for row in content["rows"]:
        far = "" if row["difference"] is None else f"{row['difference']:.1e}"
        lines.append(f"| {row['job']} | {'yes' if row['same_bits'] else 'no'} | {far} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commits", nargs="*", default=[BEFORE, AFTER], metavar="COMMIT")
    parser.add_argument("--only", default="", help="jobs whose name has these words")
    for name in ("--root", "--answer", "--arrays"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    record.add_place(parser)
    options = parser.parse_args()
    if options.root:
        done = compute(options.root, Path(options.arrays), options.only)
        Path(options.answer).write_text(json.dumps(done), encoding="utf-8")
        return
    if len(options.commits) != 2:
        parser.error(f"expected two commits, found {len(options.commits)}")
    before, after = options.commits
    with files_of(before) as first, files_of(after) as second:
        rows = compare(first, second, options.only)
    content = {"before": versus.commit_of(before), "after": versus.commit_of(after), "rows": rows}
    record.write("same_bits", content, options.results)
    text = page(json.loads((options.results / "same_bits.json").read_text(encoding="utf-8")))
    (options.results / "same_bits.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
