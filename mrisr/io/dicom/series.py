"""One volume of one DICOM series: found, checked, and read as a `Volume`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrisr.errors import InputError, MrisrWarning
from mrisr.io.dicom import choose, directory, geometry, parts, remarks, uids
from mrisr.io.dicom.frame import Frame, decode, frames
from mrisr.io.dicom.header import DIRECTORY, Header, parse
from mrisr.io.dicom.header import read as read_header
from mrisr.io.dicom.resolution import acquired_mm, usable
from mrisr.io.dicom.values import Values, label
from mrisr.io.headers import SCANNER, nifti_header
from mrisr.volume import ACQUISITION_FACTS, Volume

MOST_NAMES = 5  # files that a warning names


@dataclass(frozen=True, eq=False)
class Series:
    """One stack of parallel MR slices, in order along their normal, ready to be read.

    name                what messages call it
    frames              of the volume, in order; the headers that they came from are kept, the pixels are not
    affine              (4, 4) of (column, row, slice) -> RAS mm
    frame_of_reference  UID; generated where the files have none
    notes               what was left out, inverted, assumed or is doubtful; `find` has given each as a MrisrWarning
    group               which of several volumes of its series this is, in words; "" for the only one
    """

    name: str
    frames: tuple[Frame, ...]
    affine: np.ndarray
    frame_of_reference: str
    meta: dict[str, Any]
    notes: tuple[str, ...]
    group: str = ""

    @property
    def values(self) -> Values:
        """The header of the first frame."""
        return self.frames[0].values

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return self.frames[0].columns, self.frames[0].rows, len(self.frames)

    def volume(self) -> Volume:
        """The voxels, float32 [column, row, slice], rescaled by each frame's slope and intercept.

        Raises InputError where pixels cannot be decoded.
        """
        data = np.empty(self.shape, np.float32)
        by_part: dict[parts.Part, list[int]] = {}
        for k, frame in enumerate(self.frames):
            by_part.setdefault(frame.part, []).append(k)
        for part, indices in by_part.items():
            dataset = parse(part, pixels=True)[0]
            for k in indices:
                with np.errstate(over="ignore"):  # infinite voxels are refused by name
                    data[..., k] = decode(self.frames[k], dataset).T
        if padded := remarks.padded(self.frames, data):
            warnings.warn(f"{self.name}: {padded}", MrisrWarning, stacklevel=2)
        volume = Volume(data, self.affine, name=self.name, meta=dict(self.meta))
        header = nifti_header(volume)
        header["sform_code"] = SCANNER  # DICOM's patient coordinates are the scanner's
        header["qform_code"] = SCANNER if header["qform_code"] else 0
        return Volume(volume.data, self.affine, header, self.name, volume.meta)


def find(source: Any, *, series: int | str | None = None, group: int | str | None = None) -> Series:
    """The one volume that `source` holds, or that `series` and `group` choose; no pixel is decoded yet.

    Args:
        source: a file, a list of files, a folder (with all below it), a DICOMDIR, or a zip of these.
        series: SeriesNumber, SeriesInstanceUID or (part of) the description, where there is more than one.
        group: its number in the list that the refusal prints, or words of its entry, where one series holds several
            volumes (echoes, magnitude and phase, time points).

    Raises:
        InputError: nothing usable there, several to choose from, no MR, colour, MOSAIC, phase images, mixed
            orientation, files that are damaged or cut short, values that cannot be used.
        GeometryError: slices missing, doubled or unevenly spaced.

    Gives a MrisrWarning for everything left out, inverted, assumed or doubtful.
    """
    content = parts.find(source)
    if content.directory is not None:
        content = directory.with_images(content)
    notes: list[str] = []
    headers = _headers(content, notes)
    entry = choose.choose_series(choose.entries(headers), series, content.name)
    _refuse_incomplete(content, entry.headers)
    _say_left_out(content, headers, entry, notes)
    records = [frame for header in entry.headers for frame in frames(header)]
    _refuse_copies(records, content.name)
    volumes = choose.groups(records)
    choice = choose.choose_group(volumes, group, content.name)
    ordered, affine, of_places = geometry.place(choice.frames, content.name)
    notes += [note for header in entry.headers for note in header.notes]
    notes += [f"{content.name}: {remark}" for remark in of_places + remarks.of(ordered, records)]
    reference = ordered[0].frame_of_reference or next((f.frame_of_reference for f in ordered), "")
    if not reference:
        reference = uids.uid_of("frame of reference", entry.uid, *sorted(f.sop_instance for f in ordered))
        notes.append(f"{content.name}: no {label('FrameOfReferenceUID')}; one was generated for what is written")
    of_groups = f"group {choice.number} of {len(volumes)} ({choice.label})" if len(volumes) > 1 else ""
    widths, of_widths = acquired_mm(ordered, float(np.linalg.norm(affine[:3, 2])))
    notes += [f"{content.name}: {remark}" for remark in of_widths]
    for note in notes:
        warnings.warn(note, MrisrWarning, stacklevel=3)
    return Series(content.name, ordered, affine, reference, _meta(ordered[0], widths), tuple(notes), of_groups)


def read(source: Any, *, series: int | str | None = None, group: int | str | None = None) -> Volume:
    """`find(source, ...).volume()`: float32 [column, row, slice], RAS affine; `.meta` holds ACQUISITION_FACTS."""
    return find(source, series=series, group=group).volume()


def _headers(content: parts.Content, notes: list[str]) -> list[Header]:
    """The headers of all pictures; one that cannot be read goes to `content.broken`."""
    headers, without = [], []
    alone = len(content.dicom) == 1
    for part in content.dicom:
        try:
            header = read_header(part)
        except InputError as error:
            if alone or part.member is None and content.name == str(part.path):
                raise
            content.broken.append((part, str(error)[len(str(part)) + 2 :]))
            continue
        if header.is_picture:
            headers.append(header)
        elif header.damaged:
            content.broken.append((part, f"states no {label('Rows')}: cut short, or damaged"))
        elif header.values.uid("SOPClassUID") != DIRECTORY:
            without.append(part)
    if content.broken and not headers:
        part, why = content.broken[0]
        raise InputError(f"{part}: {why}" if ":" in why or ";" in why else f"{part}: {why}; copy it again")
    if not headers:
        raise InputError(f"{content.name}: the DICOM files hold no pictures; give the folder of an image series")
    if without:
        notes.append(
            f"{content.name}: left out {_names(without)}: no pictures (reports, presentation states or the like)"
        )
    return headers


def _refuse_incomplete(content: parts.Content, headers: tuple[Header, ...]) -> None:
    """Files that may be slices of the volume and cannot be read: without them it would lack a slice, unseen."""
    broken = [(part, why) for part, why in content.broken]
    broken += [(h.part, h.cut or "has no pixels") for h in headers if h.cut or not h.has_pixels]
    if broken:
        part, why = broken[0]
        more = f" (and {len(broken) - 1} more such files)" if len(broken) > 1 else ""
        raise InputError(
            f"{part}: {why.split(';')[0]}{more}; it may be a slice, and the volume incomplete were it left out: copy "
            "it again, or move it out of the folder to go on without it"
        )


def _say_left_out(content: parts.Content, headers: list[Header], entry: choose.Entry, notes: list[str]) -> None:
    if content.foreign:
        notes.append(f"{content.name}: left out {_names(content.foreign)}: no DICOM")
    if content.absent:
        names = ", ".join(content.absent[:MOST_NAMES])
        more = f" and {len(content.absent) - MOST_NAMES} more" if len(content.absent) > MOST_NAMES else ""
        notes.append(f"{content.name}: left out {names}{more}: listed in the DICOMDIR, but not there")
    others = [e for e in choose.entries([h for h in headers if h.series_uid != entry.uid])]
    if others:
        what = "made by mrisr" if all(e.own for e in others) else "not chosen, or of no use here"
        notes.append(f"{content.name}: left out {len(others)} other series ({what}): {'; '.join(map(str, others[:3]))}")


def _refuse_copies(records: list[Frame], name: str) -> None:
    first: dict[tuple[str, int], Frame] = {}
    for frame in records:
        key = (frame.sop_instance, frame.number)
        if frame.sop_instance and key in first:
            raise InputError(
                f"{name}: {frame.name} and {first[key].name} are copies of one image ({label('SOPInstanceUID')}); "
                "remove one"
            )
        first[key] = frame


def _meta(first: Frame, widths: tuple[float, float, float]) -> dict[str, Any]:
    """ACQUISITION_FACTS as the first frame states them."""
    values = first.values
    facts = {
        "SliceThickness": first.thickness if usable(first.thickness) else None,
        "SpacingBetweenSlices": first.slice_spacing if usable(first.slice_spacing) else None,
        "MRAcquisitionType": values.word("MRAcquisitionType") or None,
        "AcquisitionMatrix": [int(v) for v in values.numbers("AcquisitionMatrix")] or None,
        "MagneticFieldStrength": values.number("MagneticFieldStrength"),
        "ImageType": list(first.image_type) or None,
        "Manufacturer": values.text("Manufacturer") or None,
        "AcquiredVoxelSize": [float(w) for w in widths],
    }
    return {key: facts[key] for key in ACQUISITION_FACTS if facts.get(key) is not None}


def _names(files: list[parts.Part]) -> str:
    names = ", ".join(part.name for part in files[:MOST_NAMES])
    return f"{names} and {len(files) - MOST_NAMES} more" if len(files) > MOST_NAMES else names
