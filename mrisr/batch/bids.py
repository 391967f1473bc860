"""A BIDS dataset in, a BIDS derivative dataset out.

Anatomical images of raw participants are found by a plain pattern, with the sidecars that they inherit; no index of the
dataset is made, and no BIDS library is needed. Results follow the rules for derivatives: `res` before `desc`, no dot in
a label, sources as BIDS URIs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mrisr import __version__, schema
from mrisr import grid as grids
from mrisr.batch.collisions import refuse_clashes
from mrisr.batch.deliver import make_folder, write_json
from mrisr.batch.provenance import DESCRIPTION
from mrisr.batch.scans import Scan
from mrisr.errors import InputError, MrisrWarning, OutputError, UsageError
from mrisr.io import nifti, sidecar
from mrisr.io.atomic import replacing

__all__ = ["SUFFIXES", "check_beside", "describe", "find", "prepare", "title"]

SUFFIXES = ("T1w", "T2w", "FLAIR", "PDw")
ENDINGS = (".nii.gz", ".nii")
DATASET = "dataset_description.json"
BIDS_VERSION = "1.10.0"
IGNORED = ("*.html", "**/figures", "**/figures/**", "logs/", "**/.mrisr-*")
NAME = "raw"  # of the source dataset in BIDS URIs
ORIENTATIONS = ("ax", "sag", "cor")  # labels of acq, in which one head is scanned
ORIENTED = re.compile(rf"_acq-({'|'.join(ORIENTATIONS)})(?=_)")
LABEL = re.compile(r"[0-9a-zA-Z]+")
EXACT = 0.02  # mm: voxel sizes nearer to each other than this are one size


def find(
    root: Path,
    output: Path,
    options: dict[str, Any],
    *,
    participants: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    join: bool = False,
) -> tuple[Scan, ...]:
    """The scans of a raw dataset, each with its target in the derivative dataset `output`, in order. A MrisrWarning
    names participants that have none.

    Args:
        options: of `mrisr.upscale`; `voxel_size` or `factor` decides the `res` label.
        participants, sessions: labels with or without "sub-" and "ses-"; None: all.
        join: images that differ in `ORIENTATIONS` alone are one scan, the first in that order with the others.

    Raises:
        InputError: no dataset, no such participant or session, or no scan.
        UsageError: a label that is none.
        OutputError: `output` is the dataset or lies in it elsewhere than below `derivatives`, or two scans have one
            target.
    """
    root, output = Path(root), Path(output)
    _check_dataset(root)
    _check_output(root, output)
    originals, without = [], []
    labels = None if sessions is None else {_label(label, "ses") for label in sessions}
    for subject in _participants(root, "sub", participants):
        inner = [f for f in _folders(subject, "ses") if labels is None or f.name in labels]
        places = [subject] * (labels is None) + inner
        own = [image for place in places for image in _images_of(place / "anat")]
        originals += own
        without += [] if own else [subject.name]
    _refuse_absent_sessions(root, sessions, originals)
    if not originals:
        raise InputError(f"{root}: no {', '.join(SUFFIXES)} in sub-*/[ses-*/]anat of the participants asked for")
    if without:
        names = ", ".join(without[:12]) + (", ..." if len(without) > 12 else "")
        where = "" if sessions is None else " in the sessions asked for"
        warnings.warn(
            f"{root}: left out for want of {', '.join(SUFFIXES)}{where}: {len(without)} of the participants ({names})",
            MrisrWarning,
            stacklevel=2,
        )
    groups = _of_one_head(originals) if join else [[image] for image in originals]
    scans = tuple(_scan(root, output, images, options) for images in groups)
    refuse_clashes(scans)
    return scans


def prepare(root: Path, output: Path) -> None:
    """The derivative dataset's own files: its description, `.bidsignore`, README and `logs`. Those that say the same
    already are left alone.

    Raises OutputError where `output` holds another kind of dataset.
    """
    make_folder(output / "logs")
    description = output / DATASET
    if description.is_file():
        facts = schema.read(description, error=OutputError, lenient=True)
        makers = facts.get("GeneratedBy") if isinstance(facts, dict) else None
        if not isinstance(makers, list) or not any(isinstance(m, dict) and m.get("Name") == "mrisr" for m in makers):
            raise OutputError(f"{description}: is of another dataset; give an output folder of its own")
    facts = schema.read(root / DATASET, lenient=True)
    source = {"URL": str(facts["DatasetDOI"])} if facts.get("DatasetDOI") else {"URL": f"bids:{NAME}:"}
    ours = {
        "Name": f"{facts.get('Name', 'BIDS dataset')}: brought onto a finer grid by mrisr",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "mrisr", "Version": __version__, "Description": DESCRIPTION}],
        "SourceDatasets": [source],
        "DatasetLinks": {NAME: _relative(root, output)},
    }
    if not _says(description, ours):
        write_json(description, ours)
    _write_once(output / ".bidsignore", "".join(f"{line}\n" for line in IGNORED))
    _write_once(output / "README", f"{DESCRIPTION}\n\nEvery image has a .json of its own that says how it was made.\n")


def title(root: Path) -> str:
    """What the raw dataset calls itself."""
    return str(schema.read(Path(root) / DATASET, lenient=True).get("Name", ""))


def describe(scan: Scan, root: Path, voxel_size: Sequence[float]) -> dict[str, Any]:
    """The sidecar's fields of one result, by what BIDS says of derivatives."""
    sizes = " x ".join(f"{v:.4g}" for v in voxel_size)
    return {
        "Description": DESCRIPTION,
        "Sources": [f"bids:{NAME}:{one.source.relative_to(root).as_posix()}" for one in (scan, *scan.others)],
        "SpatialReference": "orig",
        "SkullStripped": _is_stripped(scan),
        "Resolution": f"{sizes} mm; measured up to the frequencies in Mrisr.Bands, synthesised above them",
    }


def _check_dataset(root: Path) -> None:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the root of a BIDS dataset")
    path = root / DATASET
    if not path.is_file():
        raise InputError(f"{root}: has no {DATASET}; give the root of a BIDS dataset, or mrisr upscale -i for others")
    facts = schema.read(path, lenient=True)
    if not isinstance(facts, dict):
        raise InputError(f"{path}: expected a JSON object")
    if facts.get("DatasetType", "raw") != "raw":
        raise InputError(f"{path}: DatasetType is {facts['DatasetType']!r}; give the raw dataset")


def _check_output(root: Path, output: Path) -> None:
    outer, inner = root.resolve(), output.resolve()
    if inner == outer or (outer in inner.parents and inner.relative_to(outer).parts[0] != "derivatives"):
        raise OutputError(f"{output}: lies in the raw dataset; give {root}/derivatives/mrisr, or a folder outside")


def check_beside(root: Path, output: Path, folder: Path) -> None:
    """OutputError where `folder`, whose files BIDS has no names for, lies in the raw or the derivative dataset."""
    _check_output(root, folder)
    outer, inner = output.resolve(), folder.resolve()
    if outer == inner or outer in inner.parents:
        raise OutputError(f"{folder}: lies in the derivative dataset, which has no place for it; give another folder")


def _label(text: str, key: str) -> str:
    """ "01" or "sub-01" -> "sub-01"."""
    bare = text.removeprefix(f"{key}-")
    if not LABEL.fullmatch(bare):
        raise UsageError(f"{key}: expected a label of letters and digits, found {text!r}")
    return f"{key}-{bare}"


def _folders(place: Path, key: str) -> list[Path]:
    return sorted(p for p in place.glob(f"{key}-*") if p.is_dir() and LABEL.fullmatch(p.name[len(key) + 1 :]))


def _participants(root: Path, key: str, labels: Sequence[str] | None) -> list[Path]:
    there = _folders(root, key)
    if labels is None:
        return there
    names = {_label(label, key) for label in labels}
    absent = sorted(names - {p.name for p in there})
    if absent:
        own_names = ", ".join(p.name for p in there[:12]) + (", ..." if len(there) > 12 else "") or "none"
        raise InputError(f"{root}: has no {', '.join(absent)}; it has {own_names}")
    return [p for p in there if p.name in names]


def _refuse_absent_sessions(root: Path, sessions: Sequence[str] | None, images: list[Path]) -> None:
    for label in sessions or ():
        name = _label(label, "ses")
        if not any(name in image.parts for image in images):
            raise InputError(f"{root}: no scan of {name} among the participants asked for")


def _images_of(folder: Path) -> list[Path]:
    """Raw anatomical images of a folder, as BIDS names them; .nii beside .nii.gz of one name is refused later."""
    pattern = re.compile(rf"sub-[0-9a-zA-Z]+(_[a-z]+-[0-9a-zA-Z]+)*_({'|'.join(SUFFIXES)})\.nii(\.gz)?")
    return sorted(p for p in folder.glob("sub-*.nii*") if pattern.fullmatch(p.name))


def _of_one_head(images: Sequence[Path]) -> list[list[Path]]:
    """Images that differ in their orientation alone, together and in the order of `ORIENTATIONS`; others alone, one
    that states no orientation (a 3D scan beside the stacks) among them."""
    groups: dict[tuple[Path, bool], list[tuple[int, Path]]] = {}
    for image in images:
        orientation = ORIENTED.search(image.name)
        bare = image if orientation is None else image.with_name(ORIENTED.sub("", image.name))
        place = ORIENTATIONS.index(orientation[1]) if orientation else 0
        groups.setdefault((bare, orientation is None), []).append((place, image))
    return [[image for _, image in sorted(group)] for group in groups.values()]


def _scan(root: Path, output: Path, images: Sequence[Path], options: dict[str, Any]) -> Scan:
    """The scan of an image, joined with the others."""
    image = images[0]
    inside = image.relative_to(root)
    sizes = _target_sizes(image, options)
    stem = image.name[: -len(nifti.ending_of(image))]
    entities, suffix = stem.rsplit("_", 1)
    what = "sr"
    if len(images) > 1:
        entities, what = ORIENTED.sub("", f"{entities}_"), "join"
        entities = entities.rstrip("_")
    name = f"{entities}_res-{_resolution(sizes)}_desc-{what}_{suffix}.nii.gz"
    target = output / inside.with_name(name)
    first, *others = (
        Scan(one, target, one.relative_to(root).as_posix(), (one,), sidecars=_inherited(root, one)) for one in images
    )
    scan = replace(first, others=tuple(others))
    return replace(scan, about=describe(scan, root, sizes))


def _target_sizes(image: Path, options: dict[str, Any]) -> tuple[float, ...]:
    """Voxel size of the result in mm, as `mrisr.grid.plan` makes it; a file that is broken is told of in reading."""
    import nibabel as nib

    try:
        own = [float(v) for v in np.linalg.norm(nib.load(image).affine[:3, :3], axis=0)]
    except Exception:  # noqa: BLE001 - nibabel raises anything for a broken file; `read` says in one line what it is
        own = [1.0] * 3
    if options.get("factor") is not None:
        return tuple(size / f for size, f in zip(own, np.broadcast_to(options["factor"], 3)))
    if options.get("voxel_size") is not None:
        return tuple(float(v) for v in np.broadcast_to(options["voxel_size"], 3))
    return tuple(float(v) for v in grids.default_voxel_size(grids.Grid((1, 1, 1), np.diag([*own, 1.0]))))


def _resolution(sizes: Sequence[float]) -> str:
    """ "0p7mm" where the voxels are cubes, else "sr", whose meaning the sidecar has."""
    if max(sizes) - min(sizes) > EXACT * min(sizes):
        return "sr"
    return f"{sizes[0]:.3g}mm".replace(".", "p")


def _inherited(root: Path, image: Path) -> tuple[Path, ...]:
    """Sidecars that hold for `image`, from the root to its folder: each whose entities the image has too."""
    entities = set(image.name.split(".")[0].split("_"))
    suffix = image.name.split(".")[0].rsplit("_", 1)[-1]
    folders = [root, *(root / part for part in reversed(image.relative_to(root).parent.parents)), image.parent]
    sidecars = []
    for folder in dict.fromkeys(folders):
        fitting = [p for p in folder.glob(f"*{suffix}.json") if set(p.name[:-5].split("_")) <= entities]
        sidecars += sorted(fitting, key=lambda p: len(p.name.split("_")))
    return tuple(sidecars)


def _is_stripped(scan: Scan) -> bool:
    """What the raw sidecars say; a raw image is not stripped unless they do."""
    total: dict[str, Any] = {}
    for path in scan.sidecars or ():
        try:
            facts = sidecar.read(path)
        except InputError:  # `sidecar.facts` warns of it
            continue
        total |= facts if isinstance(facts, dict) else {}
    return total.get("SkullStripped") is True


def _relative(root: Path, output: Path) -> str:
    """The raw dataset as seen from the derivatives: no path of this machine goes into the dataset."""
    import os

    return os.path.relpath(root.resolve(), output.resolve())


def _says(path: Path, value: Any) -> bool:
    try:
        return schema.read(path) == value
    except InputError:
        return False


def _write_once(path: Path, text: str) -> None:
    if not path.exists():
        with replacing(path, force=True) as beside:
            beside.write_text(text, encoding="utf-8")
