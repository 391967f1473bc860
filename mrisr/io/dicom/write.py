"""A result -> a derived series that a PACS takes: one more series in the study of its source, the originals untouched.

Per-slice MR Image Storage, because every viewer reads it. All UIDs are a hash of the source images, the weights and the
options: the same job sent twice gives the same instances, byte for byte.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np

from mrisr.errors import GeometryError, InputError, MrisrWarning, OutputError, UsageError
from mrisr.io.adapters import to_volume
from mrisr.io.atomic import replacing_folder
from mrisr.io.dicom import template, uids
from mrisr.io.dicom.frame import Frame
from mrisr.io.dicom.header import EXPLICIT
from mrisr.io.dicom.pixels import Stored, quantised
from mrisr.io.dicom.series import Series, find
from mrisr.io.dicom.values import label
from mrisr.volume import Volume

FIRST_NAME = "synth_0001.dcm"
OWN_NAME = re.compile(r"synth_\d{4,}\.dcm")
ON_A_SLICE = 1e-3  # of the distance of slices: one source slice is referenced there, not two
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Written:
    """What `write_series` wrote. clipped: voxels whose value the stored integers cannot hold."""

    folder: Path
    files: tuple[Path, ...]
    series_uid: str
    slope: float
    clipped: int


def write_series(
    result: Volume,
    series: Series,
    info: Any,
    folder: str | os.PathLike,
    *,
    force: bool = False,
    others: Sequence[Series] = (),
) -> Written:
    """Write `result` as a derived DICOM series into a new folder, which holds DICOM files only.

    Args:
        result: 3D, what `mrisr.upscale` made of `series.volume()`; any grid in the same coordinates.
        series: from `mrisr.io.dicom.find`; its files are opened for reading only.
        info: the `Info` of the run (`return_info=True`), or its `to_dict()`: model, weights and options.
        folder: made; the one above it has to exist. The files are `synth_0001.dcm` and so on.
        force: replace a folder that holds nothing but an earlier such series.
        others: of the same study, that `series` was joined with: every slice refers to all of their images, for it
            cuts through them.

    The folder appears whole or not at all. A MrisrWarning where voxels were clipped.

    Raises:
        InputError: the source cannot be referred to (`check_source`).
        OutputError: the folder cannot be made, or holds something else.
        UsageError: `result` is not 3D.
        GeometryError: its axes are not at right angles within slices.
    """
    from pydicom import config

    if result.data.ndim != 3:
        raise UsageError(f"write_series: expected one volume [X, Y, Z], found shape {result.data.shape}")
    for one in (series, *others):
        check_source(one)
    facts = info if isinstance(info, Mapping) else info.to_dict()
    check_folder(folder, force=force)
    stored = quantised(result.data, series.frames)
    series_uid = uids.uid_of("series", *_job(result, [series, *others], facts))
    names = [f"synth_{k + 1:04d}.dcm" for k in range(result.data.shape[2])]
    # What the source states is kept as it states it; to say what is odd about it could say a name or a UID.
    with config.disable_value_validation(), replacing_folder(folder, force=force, sign=FIRST_NAME) as beside:
        base = template.base(series, facts, series_uid)
        if others:
            addition = f" Joined with {len(others)} more series of its study; see the source images."
            base.DerivationDescription = base.DerivationDescription[: 1024 - len(addition)] + addition
        for k, name in enumerate(names):
            dataset = _slice(base, result, series, stored, k)
            dataset.SourceImageSequence.extend(template.source(f) for other in others for f in other.frames)
            _save(dataset, beside / name)
    if stored.clipped:
        warn(f"{Path(folder).name}: {stored.clipped} voxels below 0 are stored as 0", MrisrWarning, stacklevel=2)
    target = Path(folder)
    return Written(target, tuple(target / name for name in names), series_uid, stored.slope, stored.clipped)


def write(
    result: Any,
    folder: str | os.PathLike,
    *,
    source: Any,
    info: Any,
    series: int | str | None = None,
    group: int | str | None = None,
    force: bool = False,
) -> Written:
    """As `write_series`, for a result of any kind (Volume, nibabel image) and a source given as for `find`."""
    of_source = source if isinstance(source, Series) else find(source, series=series, group=group)
    return write_series(to_volume(result)[0], of_source, info, folder, force=force)


def check_source(series: Series) -> None:
    """Whether a derived series can say which images it was made of: by their UIDs, of which its own are made as well.
    InputError otherwise."""
    nameless = next((frame for frame in series.frames if not frame.sop_instance), None)
    if nameless is not None:
        raise InputError(
            f"{nameless.name}: no {label('SOPInstanceUID')}, by which a derived series refers to its source; export "
            "the series again with its UIDs, or write an image file"
        )


def check_folder(folder: str | os.PathLike, *, force: bool = False) -> None:
    """Whether `write_series` could write there: cheap, so that a long job can ask first. OutputError otherwise."""
    target = Path(os.path.realpath(folder))
    try:
        if not target.parent.is_dir():
            raise OutputError(f"{folder}: there is no directory {target.parent}; create it first")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{folder}: no permission to write in {target.parent}; choose another directory")
        if not os.path.lexists(target):
            return
        if not target.is_dir():
            raise OutputError(f"{folder}: is a file; give the name of a folder for the derived series")
        names = sorted(p.name for p in target.iterdir())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{folder}: cannot be written ({reason}); choose another name") from error
    foreign = next((name for name in names if not OWN_NAME.fullmatch(name)), None)
    if foreign is not None:
        raise OutputError(f"{folder}: holds other things ({foreign}); give a new folder for the derived series")
    if names and not force:
        raise OutputError(f"{folder}: holds a derived series already; choose another name, or force (--force)")


def _job(result: Volume, series: Sequence[Series], facts: Mapping) -> list[str]:
    """What makes this job: source images, weights, options and the target grid, as texts."""
    import json

    sources = [f"{f.sop_instance}#{f.number}" for one in series for f in one.frames]
    keys = ("model", "weights", "mode", "steps", "samples", "seed", "ensemble", "denoise")
    keys += ("resolution", "gradnl", "bias")
    options = {key: facts.get(key) for key in keys}
    options["applied"] = [bool(c.get("applied")) for c in facts.get("consistency") or [] if isinstance(c, Mapping)]
    grid = [list(result.data.shape), np.round(result.affine, 6).tolist()]
    version = template.mrisr_version()
    return [*sources, json.dumps([options, grid, version], sort_keys=True, default=str)]


def _slice(base: Any, result: Volume, series: Series, stored: Stored, k: int) -> Any:
    from pydicom.valuerep import DSfloat

    dataset = copy.deepcopy(base)
    place = LPS_TO_RAS @ result.affine
    sizes = np.linalg.norm(place[:3, :3], axis=0)
    along_row, along_column = place[:3, 0] / sizes[0], place[:3, 1] / sizes[1]
    if abs(along_row @ along_column) > 1e-4:
        raise GeometryError(f"{result.name}: its axes within slices are not at right angles; DICOM cannot say that")
    ds = lambda values: [DSfloat(float(v), auto_format=True) for v in values]  # noqa: E731
    dataset.InstanceNumber = k + 1
    dataset.SOPInstanceUID = uids.uid_of("instance", dataset.SeriesInstanceUID, str(k))
    dataset.ImagePositionPatient = ds(place[:3, 3] + k * place[:3, 2])
    dataset.ImageOrientationPatient = ds([*along_row, *along_column])
    dataset.PixelSpacing = ds([sizes[1], sizes[0]])
    across = abs(float(np.cross(along_row, along_column) @ place[:3, 2]))
    dataset.SliceThickness, dataset.SpacingBetweenSlices = ds([across, across])
    dataset.SourceImageSequence = [template.source(frame) for frame in _bracketing(result, series, k)]
    picture = stored.voxels[..., k].T
    dataset.Rows, dataset.Columns = picture.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(stored.signed)
    if stored.slope != 1:
        dataset.RescaleSlope, dataset.RescaleIntercept = ds([stored.slope, 0.0])
        dataset.RescaleType = "US"
    dataset.WindowCenter, dataset.WindowWidth = ds(stored.window)
    dataset.PixelData = np.ascontiguousarray(picture).astype("<i2" if stored.signed else "<u2").tobytes()
    return dataset


def _bracketing(result: Volume, series: Series, k: int) -> list[Frame]:
    """The source slices on both sides of output slice `k`, at its middle; one where it lies on one or beyond an end."""
    shape = result.data.shape
    middle = np.array([(shape[0] - 1) / 2, (shape[1] - 1) / 2, k, 1.0])
    where = float((np.linalg.inv(series.affine) @ result.affine @ middle)[2])
    last = len(series.frames) - 1
    nearest = round(where)
    if abs(where - nearest) < ON_A_SLICE:
        return [series.frames[min(max(nearest, 0), last)]]
    pair = {min(max(int(np.floor(where)), 0), last), min(max(int(np.ceil(where)), 0), last)}
    return [series.frames[i] for i in sorted(pair)]


def _save(dataset: Any, path: Path) -> None:
    import pydicom

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = EXPLICIT
    meta.ImplementationClassUID = uids.uid_of("implementation")
    meta.ImplementationVersionName = f"MRISR_{template.mrisr_version()}"[:16]
    dataset.file_meta = meta
    try:
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    except OSError as error:
        raise _cause(error) from None
    except (ValueError, TypeError, AttributeError, UnicodeError) as error:
        reason = " ".join(str(_cause(error)).split())[:160]
        raise InputError(
            f"{path.name}: the source's header cannot be written again ({reason}); anonymise it"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What pydicom has wrapped: the wrapper's text is a whole traceback, and it has no errno."""
    while type(error.__cause__) is type(error):
        error = error.__cause__
    return error
