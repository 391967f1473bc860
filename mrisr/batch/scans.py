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

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mrisr.batch.candidates import Candidate, paths_of, scans_of
from mrisr.batch.collisions import refuse_clashes, refuse_found_again, refuse_inside, refuse_originals
from mrisr.errors import OutputError, UsageError
from mrisr.io import dicom, nifti
from mrisr.io.several import Statement, check_one_head
from mrisr.volume import Volume

__all__ = ["FORMS", "Scan", "Work", "find"]

FORMS = ("nifti", "dicom")


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

    def read(self, *, framewise: bool = False) -> tuple[Volume, dicom.Series | None]:
        """The voxels, and the series that they are of; framewise: as for `nifti.read`.

        Raises as `nifti.read`, `dicom.find` and, where the result is to be a derived series, `dicom.check_source` do.
        """
        if not self.from_dicom:
            return nifti.read(self.source, sidecars=self.sidecars, framewise=framewise), None
        series = dicom.find(self.source, series=self.series, group=self.group)
        if self.to_dicom:
            dicom.check_source(series)
        return series.volume(), series

    def read_others(self, own: dicom.Series | None, *, force: bool = False) -> tuple[list[Volume], list[dicom.Series]]:
        """The scans that are to be joined with this one, and the series of those that are DICOM.

        own: the series of this scan. Raises InputError where two are not of one head by their headers, unless `force`.
        """
        pairs = [other.read() for other in self.others]
        scans = [(self, own), *((other, one) for other, (_, one) in zip(self.others, pairs))]
        check_one_head([scan.statement(one) for scan, one in scans] if self.others else [], force)
        return [volume for volume, _ in pairs], [one for _, one in pairs if one is not None]

    def statement(self, series: dicom.Series | None) -> Statement:
        """What header or sidecar state; series: of `read`."""
        return Statement.of_image(self.source, self.sidecars) if series is None else Statement.of_series(series)

    @property
    def to_dicom(self) -> bool:
        """Whether the result is a derived series."""
        return nifti.ending_of(self.target) is None


@dataclass(frozen=True)
class Work:
    """Scans in order; `folder` is what holds the results, None where the output is one image file. `searched` are the
    folders below which scans were looked for."""

    scans: tuple[Scan, ...]
    folder: Path | None
    searched: tuple[Path, ...] = ()


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
            `series` may name several series of a folder, a comma between them. One alone is taken as without.

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
    patterns: list[str] = []
    items = [item for text in texts for item in paths_of(text, patterns)]
    choices = [series] if join is None or series is None else [one.strip() for one in series.split(",")]
    candidates = [scan for item in items for one in choices for scan in scans_of(item, one, every_series)]
    _refuse_doubles(candidates)
    images = [one for one in candidates if one.ending is not None]
    if (series is not None or group is not None) and len(images) == len(candidates):
        raise UsageError(f"series, group: {_what(items)} is no DICOM; leave them out, or give a DICOM source")
    if join is not None and (len(candidates) > 1 or join != 0):  # one alone is as ever
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
        refuse_inside(output, item)
    base = Path(os.path.commonpath([f.base.resolve() for f in candidates]))
    alone = len(candidates) == 1 and len(items) == 1
    scans = tuple(_with_target(one, base, output, form, alone, group) for one in candidates)
    refuse_clashes(scans)
    refuse_originals(scans)
    refuse_found_again(output, scans, patterns)
    return Work(scans, output, tuple(item for item in items if item.is_dir()))


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


def _with_target(one: Candidate, base: Path, output: Path, form: str | None, alone: bool, group: str | None) -> Scan:
    """A scan with its target below `output`, its folders those below `base`."""
    place = Path(os.path.relpath(one.base.resolve() / one.place, base))
    ending = one.ending
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
    scans: list[Candidate], items: list[Path], output: Path, form: str | None, group: str | None, reference: int
) -> Work:
    """One scan, which the others are joined with."""
    if not 0 <= reference < len(scans):
        raise UsageError(f"reference: expected a number from 0 to {len(scans) - 1}, found {reference}")
    first = scans[reference]
    if _is_image_file(output):
        if form == "dicom":
            raise UsageError(f"{output}: is the name of an image, and the format dicom needs a folder; leave one out")
        scan, folder = Scan(first.source, output, _name(first.place), first.files, first.series, group), None
    else:
        for item in items:
            refuse_inside(output, item)
        bare = replace(first, own_folder="")
        scan, folder = _with_target(bare, first.base.resolve(), output, form, True, group), output
    others = tuple(
        Scan(one.source, scan.target, _name(one.place), one.files, one.series, group)
        for one in scans
        if one is not first
    )
    scan = replace(scan, others=others)
    if folder is not None:
        refuse_originals((scan,))
    return Work((scan,), folder, tuple(item for item in items if item.is_dir()))


def _name(place: Path) -> str:
    return place.as_posix()


def _what(items: list[Path]) -> str:
    return str(items[0]) if len(items) == 1 else f"{len(items)} inputs"


def _refuse_doubles(candidates: list[Candidate]) -> None:
    """The same scan twice, by two inputs, is asked about rather than done twice."""
    first_by_key: dict[Any, Candidate] = {}
    for one in candidates:
        files = (one.source,) if isinstance(one.source, Path) else one.source
        key = (*map(os.path.realpath, files), one.series)
        if key in first_by_key:
            raise UsageError(f"input: {one.place} is given twice; leave one out")
        first_by_key[key] = one
