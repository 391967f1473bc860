"""What `-i` and `-o` mean: the scans that an input stands for, and the file or folder that each becomes.

The rule, all of it:

- a file is one scan; a text file (.txt) is a list of inputs, one a line; a text with * ? or [ is a pattern
  (** for any depth);
- a folder is every scan below it, or, where it holds DICOM files, its DICOM series: one is one scan; of several one is
  chosen by `series` (they are listed where it is not), or all are taken by `every_series`. Images that lie beside DICOM
  files are named, not mixed in. A DICOM file, DICOMDIR or zip is as its folder would be;
- an output that ends like an image (.nii, .nii.gz, .mgh, .mgz) takes one scan; any other is a folder, in which
  names are kept and subfolders mirrored. DICOM becomes a derived series there, unless `form` is "nifti".
"""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mrisr.errors import InputError, MrisrWarning, OutputError, UsageError, because
from mrisr.io import dicom, nifti
from mrisr.io.dicom.choose import entries
from mrisr.io.dicom.header import read as read_header
from mrisr.io.dicom.parts import Part
from mrisr.io.several import check_one_head
from mrisr.volume import Volume

__all__ = ["FORMS", "Scan", "Work", "find"]

FORMS = ("nifti", "dicom")
LIST_ENDING = ".txt"
HEADERS = (".img", ".img.gz")  # the other halves of .hdr: one scan, not two
SHOWN = 12  # series that a message lists
# Images that other programs write and nobody here reads: in a folder of scans they are not passed over in silence.
OTHER_IMAGES = re.compile(
    r".*(\.(nrrd|nhdr|mh[ad]|mnc2?|mif(\.gz)?|mih|nii\.(zip|bz2|xz|zst)|vmr|par)|\+(orig|tlrc|acpc)\.head)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Scan:
    """One scan to upscale.

    source   a path, or the files of one DICOM series
    target   the image file to write, or the folder of a derived series
    name     what lines and records call it: relative, with / between folders
    files    that hold its voxels, for a hash
    series, group  as `mrisr.io.dicom.find` takes them
    sidecars JSON files whose facts hold for the image, the nearest last (BIDS inheritance); None: the one beside it
    about    fields for the result's sidecar, which stand in place of the usual ones
    others   further scans of the same head, to be joined with this one
    """

    source: Path | tuple[Path, ...]
    target: Path
    name: str
    files: tuple[Path, ...]
    series: str | None = None
    group: str | None = None
    sidecars: tuple[Path, ...] | None = None
    about: dict[str, Any] | None = None
    others: tuple[Scan, ...] = ()

    @property
    def from_dicom(self) -> bool:
        """Whether the source is DICOM."""
        return isinstance(self.source, tuple) or nifti.ending_of(self.source, nifti.READ_ENDINGS) is None

    def read(self) -> tuple[Volume, dicom.Series | None]:
        """The voxels, and the series that they are of. Raises as `nifti.read`, `dicom.find` and, where the result is to
        be a derived series, `dicom.check_source` do."""
        if not self.from_dicom:
            return nifti.read(self.source, sidecars=self.sidecars), None
        series = dicom.find(self.source, series=self.series, group=self.group)
        if self.to_dicom:
            dicom.check_source(series)
        return series.volume(), series

    def read_others(self, own: dicom.Series | None, *, force: bool = False) -> tuple[list[Volume], list[dicom.Series]]:
        """The scans that are to be joined with this one, and the series of those that are DICOM.

        own: the series of this scan. Raises InputError where two are not of one head by their headers, unless `force`.
        """
        pairs = [other.read() for other in self.others]
        series = [one for _, one in pairs if one is not None]
        check_one_head([*([] if own is None else [own]), *series], force)
        return [volume for volume, _ in pairs], series

    @property
    def to_dicom(self) -> bool:
        """Whether the result is a derived series."""
        return nifti.ending_of(self.target) is None


@dataclass(frozen=True)
class Work:
    """Scans in order; `folder` is what holds the results, None where the output is one image file."""

    scans: tuple[Scan, ...]
    folder: Path | None


@dataclass(frozen=True)
class _Candidate:
    """A scan before it has a target; `place` is its name below the folder that its names start from."""

    source: Path | tuple[Path, ...]
    base: Path
    place: Path
    files: tuple[Path, ...]
    series: str | None = None
    own_folder: str = ""


def find(
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    form: str | None = None,
    series: str | None = None,
    group: str | None = None,
    every_series: bool = False,
    join: int | None = None,
) -> Work:
    """The scans of `inputs` and their targets, by the rule at the top of this module. Reads no voxel.

    Args:
        form: "nifti" or "dicom": what is written into a folder; None: the kind that came in.
        series, group: of DICOM, as `mrisr.io.dicom.find` takes them; which one there is turns out in reading.
        every_series: take all series of a folder, but those that mrisr made.
        join: the inputs are scans of one head, that become one; the number of that (from 0) which says where. Then
            `series` may name several series of a folder, a comma between them.

    Raises:
        InputError: nothing there.
        UsageError: several scans for one file, or options that do not fit.
        OutputError: two scans with one target, an output inside the input, or an unknown ending.
    """
    texts = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    if not texts or not all(os.fspath(text).strip() for text in texts):
        raise UsageError("input: nothing given; name a scan, a folder, a list or a pattern")
    if os.fspath(output).strip() in ("", "-"):
        raise UsageError(f"output: expected the name of a file or folder, found {os.fspath(output)!r}; give one")
    output = Path(output)
    single = _is_image_file(output)
    items = [item for text in texts for item in _paths_of(text)]
    choices = [series] if join is None or series is None else [one.strip() for one in series.split(",")]
    candidates = [scan for item in items for one in choices for scan in _scans_of(item, one, every_series)]
    _refuse_doubles(candidates)
    images = [one for one in candidates if _image_ending(one) is not None]
    if (series is not None or group is not None) and len(images) == len(candidates):
        raise UsageError(f"series, group: {_what(items)} is no DICOM; leave them out, or give a DICOM source")
    if join is not None:
        return _one_of_several(candidates, items, output, form, group, join)
    if single:
        if len(candidates) != 1:
            names = ", ".join(str(f.place) for f in candidates[:3])
            raise UsageError(
                f"{output}: is one file, and {_what(items)} hold {len(candidates)} scans ({names}, ...); give a folder"
            )
        if form == "dicom":
            raise UsageError(f"{output}: is the name of an image, and the format dicom needs a folder; leave one out")
        one = candidates[0]
        return Work((Scan(one.source, output, _name(one.place), one.files, one.series, group),), None)
    for item in items:
        _refuse_inside(output, item)
    base = Path(os.path.commonpath([f.base.resolve() for f in candidates]))
    alone = len(candidates) == 1 and len(items) == 1
    scans = tuple(_with_target(one, base, output, form, alone, group) for one in candidates)
    _refuse_clashes(scans)
    return Work(scans, output)


def _is_image_file(output: Path) -> bool:
    """Whether the output is one image. OutputError where its name ends like a file of another kind."""
    if nifti.ending_of(output) is not None:
        return True
    if output.is_dir() or not output.suffix or str(output).endswith(os.sep):
        return False
    if output.suffix[1:].isdigit():  # a version or a voxel size in the name of a folder
        return False
    raise OutputError(
        f"{output}: the output format is not known; end the name in {', '.join(nifti.WRITE_ENDINGS)}, or give a folder"
        " (make it first, if its name has a dot)"
    )


def _paths_of(text: str | os.PathLike, within: tuple[str, ...] = ()) -> Iterable[Path]:
    """The paths that one input stands for: itself, the lines of a list, or what a pattern matches. `within` are the
    lists that name it."""
    path = Path(text)
    if path.suffix.lower() == LIST_ENDING and path.is_file():
        if (real := os.path.realpath(path)) in within:
            raise InputError(f"{path}: the list names itself (by way of {within[-1]}); take that line out")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path}: the list cannot be read ({because(error)}); write one path a line, UTF-8"
            ) from error
        entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if nifti.ending_of(path, nifti.READ_ENDINGS) is None and not entries:
            raise InputError(f"{path}: the list is empty; expected a file name in each line")
        beside = [Path(line) if Path(line).is_absolute() else path.parent / line for line in entries]
        missing = [str(one) for one in beside if not one.exists() and not glob.has_magic(str(one))]
        if missing:
            line = entries.index(entries[beside.index(Path(missing[0]))]) + 1
            raise InputError(
                f"{path}: line {line} names {missing[0]}, which is not there "
                f"({len(missing)} of {len(entries)} are missing); expected a file name in each line"
            )
        return [item for one in beside for item in _paths_of(one, (*within, real))]
    if not path.exists() and glob.has_magic(str(text)):
        matches = sorted(Path(match) for match in glob.glob(str(text), recursive=True))
        if not matches:
            raise InputError(f"{text}: the pattern matches no file")
        return matches
    return [path]


def _scans_of(path: Path, series: str | None, every_series: bool) -> list[_Candidate]:
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file; check the path")
        if nifti.ending_of(path, nifti.READ_ENDINGS) is None:
            if not dicom.is_dicom(path):
                endings = ", ".join(nifti.READ_ENDINGS)
                raise InputError(f"{path}: expected a file name in {endings}, a DICOM file, or a list ({LIST_ENDING})")
            return [_Candidate(path, path.absolute().parent, Path(path.name), (path,), series)]
        return [_Candidate(path, path.absolute().parent, Path(path.name), (path, *_other_half(path)))]
    images, pictures = _below(path)
    scans = _series_of(path, pictures, series, every_series) if pictures else []
    scans += [_Candidate(image, path, image.relative_to(path), (image, *_other_half(image))) for image in images]
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


def _series_of(folder: Path, pictures: list[Path], series: str | None, every: bool) -> list[_Candidate]:
    """The DICOM of a folder: one scan, which reading finds; or every series of it."""
    if not every:
        return [_Candidate(folder, folder, Path(), tuple(pictures), series)]
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
        scans.append(_Candidate(files, folder, where, files, entry.uid, words or entry.uid))
    if not scans:
        raise InputError(f"{folder}: no DICOM series that can be used")
    return scans


def _with_target(one: _Candidate, base: Path, output: Path, form: str | None, alone: bool, group: str | None) -> Scan:
    """A scan with its target below `output`, its folders those below `base`."""
    place = Path(os.path.relpath(one.base.resolve() / one.place, base))
    ending = _image_ending(one)
    if ending is not None:
        if form == "dicom":
            raise UsageError(f"{one.source}: only DICOM can become DICOM, whose header has the patient and the study")
        target_ending = ending if ending in nifti.WRITE_ENDINGS else ".nii"
        target = place.with_name(place.name[: -len(ending)] + target_ending)
        return Scan(one.source, output / target, _name(place), one.files)
    folder = place / one.own_folder  # series that may share a folder get one each, by number and description
    if alone and not one.own_folder:
        folder = Path()
    name = folder if folder.parts else Path(base.name)
    selection = (one.files, one.series, group)
    if form == "nifti":
        return Scan(one.source, output / name.with_name(name.name + ".nii.gz"), _name(name), *selection)
    return Scan(one.source, output / folder, _name(name), *selection)


def _one_of_several(
    scans: list[_Candidate], items: list[Path], output: Path, form: str | None, group: str | None, reference: int
) -> Work:
    """One scan, which the others are joined with."""
    if len(scans) < 2:
        raise UsageError(f"join: {_what(items)} hold one scan; give several scans of one head")
    if not 0 <= reference < len(scans):
        raise UsageError(f"reference: expected a number from 0 to {len(scans) - 1}, found {reference}")
    first = scans[reference]
    if _is_image_file(output):
        if form == "dicom":
            raise UsageError(f"{output}: is the name of an image, and the format dicom needs a folder; leave one out")
        scan, folder = Scan(first.source, output, _name(first.place), first.files, first.series, group), None
    else:
        for item in items:
            _refuse_inside(output, item)
        bare = replace(first, own_folder="")
        scan, folder = _with_target(bare, first.base.resolve(), output, form, True, group), output
    others = tuple(
        Scan(one.source, scan.target, _name(one.place), one.files, one.series, group)
        for one in scans
        if one is not first
    )
    return Work((replace(scan, others=others),), folder)


def _image_ending(one: _Candidate) -> str | None:
    """The ending of an image, None for DICOM."""
    return nifti.ending_of(one.place, nifti.READ_ENDINGS) if isinstance(one.source, Path) else None


def _name(place: Path) -> str:
    return place.as_posix()


def _what(items: list[Path]) -> str:
    return str(items[0]) if len(items) == 1 else f"{len(items)} inputs"


def _refuse_doubles(candidates: list[_Candidate]) -> None:
    """The same scan twice, by two inputs, is asked about rather than done twice."""
    first_by_key: dict[Any, _Candidate] = {}
    for one in candidates:
        files = (one.source,) if isinstance(one.source, Path) else one.source
        key = (*map(os.path.realpath, files), one.series)
        if key in first_by_key:
            raise UsageError(f"input: {one.place} is given twice; leave one out")
        first_by_key[key] = one


def _refuse_inside(output: Path, item: Path) -> None:
    """Results in the folder that is searched would be scans of the next run."""
    if not item.is_dir():
        return
    outer, inner = item.resolve(), output.resolve()
    if inner == outer:
        raise OutputError(f"{output}: is the folder of the originals; give another")
    if outer in inner.parents:
        raise OutputError(f"{output}: lies inside the input {item}; the next run would find it there, give another")


def _refuse_clashes(scans: tuple[Scan, ...]) -> None:
    first_by_key: dict[str, Scan] = {}
    for scan in scans:
        ending = nifti.ending_of(scan.target) or ""  # images that differ in it alone would share a sidecar
        key = str(scan.target)[: -len(ending) or None].casefold()  # some file systems do not tell capitals apart
        if key in first_by_key:
            raise OutputError(
                f"{scan.target}: would be written from {first_by_key[key].name} and from {scan.name}; rename one of "
                "them, or give them separate outputs"
            )
        first_by_key[key] = scan
