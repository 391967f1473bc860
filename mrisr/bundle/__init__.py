"""The bundle: a folder that holds a trained network and all that is needed to upscale with it, without Python.

    DIR/config.json          what this file describes: `mrisr.bundle.config.Config`, version 2
    DIR/model.onnx           the raw network in float32, F(x, y, vector, guidance) -> f
    DIR/weights.safetensors  the weights, once: the graphs refer to them (ONNX external data), and Python reads them
    DIR/card.md              the model card
    DIR/model.float16.onnx, model.bfloat16.onnx, model.xml + model.bin, model.plan + model.plan.json   on request

**The network.** `network.inputs` in order: x [1, 1, D, H, W] (c_in times the state; zeros in mode "mean"), y [1, 1, D,
H, W] (the normalised start), vector [1, 40], guidance [1, 8, D/8, H/8, W/8]; the output f has the shape of x. D, H and
W are any multiples of `network.multiple`; axes are in canonical order (coarsest acquired width last, below). Inputs
and outputs are float32 in every graph, whatever it computes in. Preconditioning is the caller's:
x0 = c_skip x + c_out f, with s = sigma, d = `diffusion.sigma_data`, c_skip = d^2 / (s^2 + d^2),
c_out = s d / sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2). Mode "mean" is x = 0, s = sigma_max, x0 = c_out f.

**The vector.** Zero but for the entries of `vector.layout` (first place, number of places): log_sigma = ln(s / d) /
`log_sigma_unit`; mode = `mode_mean` or `mode_sample`; width = max(0, log2(acquired width / target voxel)) per axis and
width_known = 1; profile = one-hot per axis over `profiles`; noise = (noise / intensity scale) / `noise_unit` with
noise_known = 1, or both 0 where it is not known; step_share = 1 / steps in mode "sample" where `few_steps` has steps;
spacing = log2(stored voxel / target voxel) per axis; apodisation = 0 (none), 0.5 (Tukey) or 1 (Hann) per axis with
apodisation_known = 1, or all 0 where it is not known; denoise = 0 to 1.
Axes are in canonical order: sorted, stably, by that width rounded to `width_decimals`, coarsest last. **The guidance**
is all zeros where there is none: its flags are channels too.

**Modes.** "mean" is one evaluation. "sample" starts from sigma_max times normal noise (Philox, keyed by seed and voxel)
and takes `steps` evaluations of DPM-Solver++(2M) on Karras' levels with `rho` between sigma_max and sigma_min. Where
`few_steps` has steps, the levels are Karras' of steps + 1 without the last (sigma_min), and each step is of first
order: x becomes r x + (1 - r) x0, r = following level / level; the last gives x0.

**Files.** `files` has the size and SHA-256 of every file but config.json. Their names are plain (no folder); what the
names stand for lies in the folder (no link out of it). `graphs` says what each graph is. Files that are not listed are
not read. A reader checks all of that, refuses a `format_version` that it does not know and any field that it does not
know: a change of this page is a new version. Every field stands in `Config`; an example is tests/export/config.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from mrisr import schema
from mrisr.bundle.config import FORMAT, GRAPHS, PRECISIONS, VERSION, Config
from mrisr.errors import ModelError

__all__ = [
    "CARD_NAME", "CONFIG_NAME", "FORMAT", "GRAPHS", "MODEL_NAME", "PRECISIONS", "VERSION", "WEIGHTS_NAME",
    "Bundle", "BundleError", "Plan", "check_config", "describe_file", "is_bundle", "read", "read_config",
    "write_config",
]  # fmt: skip
IN_THREES = ("width", "width_known", "spacing", "apodisation")  # entries of the vector with a place per axis
CONFIG_NAME, CARD_NAME, WEIGHTS_NAME, MODEL_NAME = "config.json", "card.md", "weights.safetensors", "model.onnx"


class BundleError(ModelError):
    """A bundle cannot be used: damaged, not one, or of a version that this mrisr does not read."""


@dataclass(frozen=True)
class Plan:
    """A TensorRT plan of a bundle: its path and the precision of its graph."""

    path: Path
    precision: str


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked.

    Attributes:
        folder: where it lies.
        config: config.json, checked against `Config`.
    """

    folder: Path
    config: dict

    def file(self, name: str) -> Path:
        return self.folder / name

    def graph(self, form: str, precision: str = "float32") -> Path | None:
        """The graph of a format and precision, or None where the bundle has none."""
        files = [g["file"] for g in self.config["graphs"] if (g["format"], g["precision"]) == (form, precision)]
        return self.folder / files[0] if files else None

    def plan(self) -> Plan | None:
        """Its TensorRT plan, or None where it has none."""
        plans = [g for g in self.config["graphs"] if g["format"] == "tensorrt"]
        return Plan(self.folder / plans[0]["file"], plans[0]["precision"]) if plans else None


def is_bundle(folder: str | os.PathLike) -> bool:
    """Whether a folder has the looks of one (not whether it is a good one)."""
    config = Path(folder) / CONFIG_NAME
    if os.path.lexists(Path(folder) / MODEL_NAME):
        return True
    if not config.is_file():
        return False
    with open(config, "rb") as f:
        return FORMAT.encode() in f.read(4096)


def read(folder: str | os.PathLike) -> Bundle:
    """Read and check a bundle, the SHA-256 of every file included.

    Raises:
        BundleError: what is wrong, where, and what to do.
    """
    folder = Path(folder)
    try:
        if not folder.is_dir():
            raise BundleError(f"{folder}: there is no such folder; give the folder that `mrisr export` made")
        config = read_config(folder)
        for name, entry in config["files"].items():
            _check_file(folder, name, entry)
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        raise BundleError(f"{folder}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return Bundle(folder, config)


def read_config(folder: Path) -> dict:
    """config.json of a bundle, checked but for the files that it names."""
    path = folder / CONFIG_NAME
    size = _regular(folder, CONFIG_NAME)
    if size > schema.LARGEST:
        raise BundleError(f"{path}: {size} bytes; a configuration has at most {schema.LARGEST}")
    return check_config(path.read_bytes(), str(path))


def check_config(text: bytes, where: str) -> dict:
    """The configuration in `text`, checked; `where` begins every error."""
    config = schema.parse(text, where, error=BundleError)
    _check_version(config, where)
    schema.check(config, Config, where, error=BundleError)
    wrong = _contradiction(config)
    if wrong:
        raise BundleError(f"{where}: {wrong}")
    return config


def _check_version(config, where: str) -> None:
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise BundleError(f"{where}: not the configuration of a bundle (no format {FORMAT!r})")
    version = config.get("format_version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise BundleError(
            f"{where}: format version {version}, and this mrisr reads up to {VERSION}; use a newer mrisr, or export "
            "again with this one"
        )


def _contradiction(config: dict) -> str | None:
    """What no single field shows to be wrong."""
    files, graphs, vector, guidance = (config[k] for k in ("files", "graphs", "vector", "guidance"))
    diffusion, tiling = config["diffusion"], config["tiling"]
    names = [g["file"] for g in graphs]
    unlisted = [n for n in (MODEL_NAME, WEIGHTS_NAME, CARD_NAME, *names) if n not in files]
    places = [p for first, count in vector["layout"].values() for p in range(first, first + count)]
    inputs = {p["name"]: p["shape"] for p in config["network"]["inputs"]}
    plain = [1, 1, "D", "H", "W"]
    coarse = [1, guidance["channels"], "D/8", "H/8", "W/8"]
    expected = {"x": plain, "y": plain, "vector": [1, vector["length"]], "guidance": coarse}
    checks = (
        (unlisted, f"files: lacks {', '.join(unlisted)}"),
        (CONFIG_NAME in files, f"files: {CONFIG_NAME} cannot hold its own hash"),
        (len(set(names)) != len(names), "graphs: a file stands twice"),
        (
            graphs[0] != {"file": MODEL_NAME, "format": "onnx", "precision": "float32"},
            f"graphs: the first must be {MODEL_NAME} in float32",
        ),
        (inputs != expected, f"network.inputs: expected {expected}"),
        ([p["shape"] for p in config["network"]["outputs"]] != [plain], f"network.outputs: expected one of {plain}"),
        (guidance["stride"] != 8, "guidance.stride: expected 8, as the shapes say"),
        (len(guidance["layout"]) != guidance["channels"], "guidance: layout and channels differ in number"),
        (len(set(places)) != len(places), "vector.layout: entries overlap"),
        (max(places) >= vector["length"], "vector.layout: passes the end of the vector"),
        (
            vector["layout"]["profile"][1] != 3 * len(vector["profiles"]),
            "vector.layout.profile: expected three times as many places as profiles",
        ),
        (
            any(
                count != (3 if name in IN_THREES else 1)
                for name, (_, count) in vector["layout"].items()
                if name != "profile"
            ),
            "vector.layout: expected 3 places for width, width_known, spacing and apodisation, and 1 for the others",
        ),
        (diffusion["sigma_min"] >= diffusion["sigma_max"], "diffusion: sigma_min must be below sigma_max"),
        (tiling["align"] % config["network"]["multiple"], "tiling.align: must be a multiple of network.multiple"),
        (tiling["brick"] != config["network"]["multiple"], "tiling.brick: must be network.multiple"),
        (config["fade"]["end_none"] >= config["fade"]["end_all"], "fade: end_none must be below end_all"),
        (config["fade"]["darkest"] > config["fade"]["certain"], "fade: darkest must not be above certain"),
        (2 * tiling["trim"] >= tiling["overlap"], "tiling: trim must be below half of overlap"),
        (tiling["smallest"] < tiling["align"] + tiling["overlap"], "tiling.smallest: must be align + overlap at least"),
        (
            any(r is not None and r[0] > r[1] for r in config["trained_range"].values()),
            "trained_range: expected (low, high)",
        ),
    )
    return next((text for wrong, text in checks if wrong), None)


def _regular(folder: Path, name: str) -> int:
    """Size of a file of the bundle, which has to be a regular file inside of the folder."""
    path = folder / name
    if not os.path.lexists(path):
        raise BundleError(f"{path}: is missing; export or copy the bundle again")
    real = Path(os.path.realpath(path))
    if path.is_symlink() and Path(os.path.realpath(folder)) not in real.parents:
        raise BundleError(f"{path}: is a link out of the bundle; copy the file instead")
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: is not a regular file")
    return status.st_size


def _check_file(folder: Path, name: str, entry: dict) -> None:
    path, size = folder / name, _regular(folder, name)
    if size != entry["bytes"]:
        state = "truncated" if size < entry["bytes"] else "too large"
        raise BundleError(f"{path}: {size} bytes, expected {entry['bytes']} ({state}); export or copy the bundle again")
    if describe_file(path)["sha256"] != entry["sha256"]:
        raise BundleError(f"{path}: its SHA-256 is not the one in {CONFIG_NAME}; export or copy the bundle again")


def describe_file(path: Path) -> dict:
    """The entry of a file in `files`."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_config(folder: Path, config: dict) -> None:
    """Write config.json into a folder that holds the other files already; `files` is filled in here."""
    names = sorted(p.name for p in folder.iterdir() if p.name != CONFIG_NAME)
    config = {**config, "files": {name: describe_file(folder / name) for name in names}}
    text = json.dumps(config, indent=2, allow_nan=False)
    # Lists of plain values on one line each.
    text = re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]", lambda m: f"[{re.sub(chr(10) + ' *', ' ', m[1])}]", text) + "\n"
    check_config(text.encode(), str(folder / CONFIG_NAME))
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
