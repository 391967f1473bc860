"""The protocol: volumes x cases x methods -> rows, each with every metric and the safety checks."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mrisr.errors import InputError, MrisrWarning, opening
from mrisr.evaluate import metrics, safety
from mrisr.evaluate.cases import Case, Subject, Trial, make_trial, subject_of
from mrisr.evaluate.methods import YARDSTICK, Method
from mrisr.io import nifti

ENDINGS = (".nii", ".nii.gz", ".mgz", ".mgh", ".hdr")
Progress = Callable[[str], None]
Show = Callable[[Trial, dict[str, np.ndarray], list["Row"]], None]


@dataclass(frozen=True)
class Row:
    """One method on one volume in one case.

    psnr in dB; gain: psnr minus cubic's on the same trial; fsc_beyond: FSC area beyond the acquired band,
    fsc_gain the same minus cubic's; fsc_curve: 40 shells from 0 to Nyquist; chi2: None where the case has no
    noise; seconds: wall time of the method.
    """

    volume: str
    case: str
    method: str
    psnr: float
    gain: float
    ssim: float
    hfen: float
    nmi: float
    fsc_area: float
    fsc_beyond: float
    fsc_gain: float
    chi2: float | None
    intensity_shift: float
    tissue_change: float
    seconds: float
    fsc_curve: list[float]
    lesions: dict | None = None


@dataclass
class Outcome:
    """What a run of the protocol found: rows, and the volumes it could not use with the reason."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[dict] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)


def find_volumes(inputs: Sequence[str | Path]) -> list[Path]:
    """Files as they are, folders replaced by the volumes below them in alphabetical order.

    InputError where nothing is there.
    """
    paths: list[Path] = []
    for item in map(Path, inputs):
        with opening(item):
            paths += _volumes_of(item)
    return list(dict.fromkeys(paths))


def _volumes_of(item: Path) -> list[Path]:
    if item.is_dir():
        inside = sorted(p for p in item.rglob("*") if p.is_file() and p.name.lower().endswith(ENDINGS))
        if not inside:
            raise InputError(f"{item}: no volume in this folder; expected files ending in {', '.join(ENDINGS)}")
        return inside
    if item.exists():
        return [item]
    raise InputError(f"{item}: no such file or folder")


def load_subjects(path: Path, crop: int | None = None) -> list[Subject]:
    """The subjects of one file: one, or one per frame of a 4D file. InputError where the file is no usable
    scan."""
    volume = nifti.read(path)
    name = stem(path)
    frames = list(volume.frames())
    names = [name] if len(frames) == 1 else [f"{name}[{t}]" for t in range(len(frames))]
    return [subject_of(n, frame, volume.grid, crop) for n, frame in zip(names, frames, strict=True)]


def stem(path: Path) -> str:
    """File name without a volume's ending."""
    name = path.name
    for ending in sorted(ENDINGS, key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def evaluate_trial(
    trial: Trial,
    methods: dict[str, Method],
    *,
    subject: Subject | None = None,
    seed: int = 0,
    lesions: bool = False,
    show: Show | None = None,
    progress: Progress = lambda text: None,
) -> list[Row]:
    """Rows of one trial, one for each method; `methods` must hold cubic, the yardstick. `lesions` also runs the
    lesion test (two more calls of each method; needs `subject`). `show` is called once with every image, for
    pictures."""
    span = metrics.data_range(trial.reference)
    voxel = trial.fine.voxel_size
    rows: list[Row] = []
    images: dict[str, np.ndarray] = {}
    yardstick: tuple[float, float] | None = None
    for name in sorted(methods, key=lambda n: n != YARDSTICK):  # cubic first: the others' gains are over it
        progress(f"{trial.subject}  {trial.case.name}  {name}")
        begin = time.perf_counter()
        image = methods[name](trial)
        seconds = time.perf_counter() - begin
        measured = (trial.reference, image, trial.mask)
        psnr = metrics.psnr(*measured, span)
        curve = metrics.fsc(*measured, voxel)
        beyond = metrics.fsc(*measured, voxel, band=trial.band).area
        yardstick = yardstick or (psnr, beyond)
        rows.append(
            Row(
                volume=trial.subject,
                case=trial.case.name,
                method=name,
                psnr=psnr,
                gain=psnr - yardstick[0],
                ssim=metrics.ssim3d(*measured, span),
                hfen=metrics.hfen(*measured),
                nmi=metrics.nmi(*measured, span),
                fsc_area=curve.area,
                fsc_beyond=beyond,
                fsc_gain=beyond - yardstick[1],
                chi2=safety.residual_chi2(trial, image),
                intensity_shift=safety.intensity_shift(trial, image),
                tissue_change=safety.tissue_change(trial, image),
                seconds=seconds,
                fsc_curve=[float(v) for v in curve.correlation],
                lesions=safety.lesion_test(subject, trial.case, methods[name], seed).as_dict() if lesions else None,
            )
        )
        if show is not None:
            images[name] = image
    if show is not None:
        show(trial, images, rows)
    return rows


def run_protocol(
    paths: Iterable[Path],
    cases: Sequence[Case],
    methods: dict[str, Method],
    *,
    seed: int = 0,
    crop: int | None = None,
    lesions: bool = False,
    show: Show | None = None,
    progress: Progress = lambda text: None,
) -> Outcome:
    """Every volume in every case by every method.

    A file that is no usable scan is skipped with its reason in a warning and in the outcome. Anything else
    that goes wrong (a model, a device, memory) ends the run: a table with silent holes would be worse.
    InputError where not one volume could be used.
    """
    outcome = Outcome()
    for path in paths:
        try:
            subjects = load_subjects(path, crop)
        except InputError as error:
            _skip(outcome, path, "all", error)
            continue
        for subject in subjects:
            rows = len(outcome.rows)
            for case in cases:
                try:
                    trial = make_trial(subject, case, seed)
                except InputError as error:
                    _skip(outcome, path, case.name, error)
                    continue
                outcome.rows += evaluate_trial(
                    trial, methods, subject=subject, seed=seed, lesions=lesions, show=show, progress=progress
                )
            if len(outcome.rows) > rows:
                outcome.volumes.append(subject.name)
    if not outcome.rows:
        reasons = "; ".join(f"{s['file']}: {s['reason']}" for s in outcome.skipped)
        raise InputError(f"evaluate: not one volume could be used ({reasons or 'no files given'})")
    return outcome


def trials_of(paths: Iterable[Path], cases: Sequence[Case], *, seed: int = 0, crop: int | None = None):
    """The trials of `run_protocol`, without those that it skips (and says so)."""
    for path in paths:
        try:
            subjects = load_subjects(path, crop)
        except InputError:
            continue
        for subject in subjects:
            for case in cases:
                try:
                    yield make_trial(subject, case, seed)
                except InputError:
                    continue


def _skip(outcome: Outcome, path: Path, case: str, error: InputError) -> None:
    outcome.skipped.append({"file": path.name, "case": case, "reason": str(error)})
    warnings.warn(f"skipped {path.name} (case: {case}): {error}", MrisrWarning, stacklevel=3)


def rows_as_dicts(rows: Sequence[Row]) -> list[dict]:
    """Rows for JSON, rounded to what the measurement is worth."""
    return [{key: _rounded(value) for key, value in asdict(row).items()} for row in rows]


def _rounded(value):
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value
