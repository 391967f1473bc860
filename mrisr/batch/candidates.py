"""The scans that an input stands for, before they have a target: the files of a list, a pattern, a folder or DICOM.

`mrisr.batch.scans` has the rule, and gives each its target.
"""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mrisr.errors import InputError, MrisrWarning, because
from mrisr.io import dicom, nifti
from mrisr.io.dicom.choose import entries
from mrisr.io.dicom.header import read as read_header
from mrisr.io.dicom.parts import Part

__all__ = ["Candidate", "paths_of", "scans_of"]

LIST_ENDING = ".txt"
HEADERS = (".img", ".img.gz")  # the other halves of .hdr: one scan, not two
SHOWN = 12  # series that a message lists
# Images that other programs write and nobody here reads: in a folder of scans they are not passed over in silence.
OTHER_IMAGES = re.compile(
    r".*(\.(nrrd|nhdr|mh[ad]|mnc2?|mif(\.gz)?|mih|nii\.(zip|bz2|xz|zst)|vmr|par)|\+(orig|tlrc|acpc)\.head)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Candidate:
    """A scan before it has a target; `place` is its name below the folder that its names start from."""

    source: Path | tuple[Path, ...]
    base: Path
    place: Path
    files: tuple[Path, ...]
    series: str | None = None
    own_folder: str = ""

    @property
    def ending(self) -> str | None:
        """The ending of an image, None for DICOM."""
        return nifti.ending_of(self.place, nifti.READ_ENDINGS) if isinstance(self.source, Path) else None


def paths_of(text: str | os.PathLike, patterns: list[str], within: tuple[str, ...] = ()) -> Iterable[Path]:
    """The paths that one input stands for: itself, the lines of a list, or what a pattern matches, which is added to
    `patterns`. `within` are the lists that name it."""
    path = Path(text)
    if path.suffix.lower() == LIST_ENDING and path.is_file():
        if (real := os.path.realpath(path)) in within:
            raise InputError(f"{path}: the list names itself (by way of {within[-1]}); take that line out")
        return [item for one in _lines(path) for item in paths_of(one, patterns, (*within, real))]
    if not path.exists() and glob.has_magic(str(text)):
        matches = sorted(Path(match) for match in glob.glob(str(text), recursive=True))
        if not matches:
            raise InputError(f"{text}: the pattern matches no file")
        patterns.append(str(text))
        return matches
    return [path]


def _lines(path: Path) -> list[str | Path]:
    """What a list names, from its folder on. InputError where something is not there."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the list cannot be read ({because(error)}); write one path a line, UTF-8") from error
    numbers_and_names = ((number, line.strip()) for number, line in enumerate(lines, 1))
    entries = [(number, name) for number, name in numbers_and_names if name and not name.startswith("#")]
    if not entries:
        raise InputError(f"{path}: the list is empty; expected a file name in each line")
    missing = [(k, name) for k, name in entries if not (path.parent / name).exists() and not glob.has_magic(name)]
    if missing:
        number, name = missing[0]
        raise InputError(
            f"{path}: line {number} names {path.parent / name}, which is not there ({len(missing)} of {len(entries)} "
            "are missing); expected a file name in each line"
        )
    # Of a line that is a pattern, letters of the folder that the list lies in are none.
    folder = glob.escape(str(path.parent))
    beside = ((path.parent / name, name) for _, name in entries)
    return [there if there.exists() else os.path.join(folder, name) for there, name in beside]


def scans_of(path: Path, series: str | None, every_series: bool) -> list[Candidate]:
    """The scans that a path stands for. InputError where it is not there or holds none."""
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file; check the path")
        if nifti.ending_of(path, nifti.READ_ENDINGS) is None:
            if not dicom.is_dicom(path):
                endings = ", ".join(nifti.READ_ENDINGS)
                raise InputError(f"{path}: expected a file name in {endings}, a DICOM file, or a list ({LIST_ENDING})")
            return [Candidate(path, path.absolute().parent, Path(path.name), (path,), series)]
        return [Candidate(path, path.absolute().parent, Path(path.name), (path, *_other_half(path)))]
    images, pictures = _below(path)
    scans = _series_of(path, pictures, series, every_series) if pictures else []
    scans += [Candidate(image, path, image.relative_to(path), (image, *_other_half(image))) for image in images]
    if not scans:
        raise InputError(
            f"{path}: the directory holds no scan; expected files in {', '.join(nifti.READ_ENDINGS)} or DICOM files"
        )
    return scans


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """(images, DICOM files) at any depth, hidden ones left out; links to folders are followed once."""
    images, pictures, others, visited_folders = [], [], [], set()
    for here, subfolders, names in os.walk(folder, followlinks=True, onerror=_cannot_list):
        real = os.path.realpath(here)
        subfolders[:] = sorted(n for n in subfolders if not n.startswith("."))
        if real in visited_folders:
            subfolders[:] = []
            continue
        visited_folders.add(real)
        files = [Path(here, name) for name in sorted(names) if not name.startswith(".")]
        own = [f for f in files if _is_scan(f)]
        others += [f for f in files if OTHER_IMAGES.fullmatch(f.name)]
        here_dicom = [f for f in files if nifti.ending_of(f, nifti.READ_ENDINGS) is None and dicom.is_dicom(f)]
        if here_dicom and own:
            examples = ", ".join(f.name for f in own[:SHOWN]) + (", ..." if len(own) > SHOWN else "")
            warnings.warn(
                f"{here}: DICOM files; {len(own)} images beside them are left out ({examples}); give them by name",
                MrisrWarning,
                stacklevel=2,
            )
            own = []
        images += own
        pictures += here_dicom
    if others:
        names = ", ".join(str(f.relative_to(folder)) for f in others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
        warnings.warn(
            f"{folder}: left out {len(others)} images of formats not read here ({names}); convert them to NIfTI",
            MrisrWarning,
            stacklevel=2,
        )
    return images, pictures


def _cannot_list(error: OSError) -> None:
    raise InputError(f"{error.filename}: the directory cannot be read ({error.strerror}); check its permissions")


def _is_scan(path: Path) -> bool:
    """Whether the file is named like an image; of a pair, only its header."""
    ending = nifti.ending_of(path, nifti.READ_ENDINGS)
    return ending is not None and not (ending in HEADERS and _other_half(path))


def _other_half(path: Path) -> tuple[Path, ...]:
    """The other file of a .hdr/.img pair, where there is one."""
    ending = nifti.ending_of(path, nifti.READ_ENDINGS) or ""
    if not ending.startswith((".hdr", ".img")):
        return ()
    other = ending.replace("hdr", "img") if "hdr" in ending else ending.replace("img", "hdr")
    partner = path.with_name(path.name[: -len(ending)] + (other if path.name.endswith(ending) else other.upper()))
    return (partner,) if partner.is_file() else ()


def _series_of(folder: Path, pictures: list[Path], series: str | None, every: bool) -> list[Candidate]:
    """The DICOM of a folder: one scan, which reading finds; or every series of it."""
    if not every:
        return [Candidate(folder, folder, Path(), tuple(pictures), series)]
    headers = [header for header in map(read_header, map(Part, pictures)) if header.is_picture]
    scans = []
    for entry in entries(headers):
        if entry.refusal or entry.own:
            why = entry.refusal or "made by mrisr"
            warnings.warn(f"{folder}: series {entry} is left out ({why})", MrisrWarning, stacklevel=2)
            continue
        files = tuple(header.part.path for header in entry.headers)
        where = Path(os.path.commonpath([file.parent for file in files])).relative_to(folder)
        number = "" if entry.number is None else str(entry.number)
        words = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"{number}_{entry.description}").strip("_")
        scans.append(Candidate(files, folder, where, files, entry.uid, words or entry.uid))
    if not scans:
        raise InputError(f"{folder}: no DICOM series that can be used")
    return scans
