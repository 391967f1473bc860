"""Frames in order along their normal, and the affine that places them; whatever is no stack of slices is refused.

DICOM PS3.3 C.7.6.2: ImageOrientationPatient holds the directions of growing column and row index, PixelSpacing the
distance between rows first. File names and instance numbers decide nothing.
"""

from __future__ import annotations

import numpy as np

from mrisr.errors import GeometryError, InputError
from mrisr.io.dicom.frame import ALIKE, Frame
from mrisr.io.dicom.values import label

UNEVEN = 0.02  # relative to the mean distance: scanners round positions, a missing slice is a whole distance
FEWEST = 3
SHEARED = 0.01  # sideways shift per distance, about half a degree
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def place(frames: tuple[Frame, ...], name: str) -> tuple[tuple[Frame, ...], np.ndarray, list[str]]:
    """(frames in order, affine (4, 4) of (column, row, slice) -> RAS mm, doubts in words).

    Raises InputError where the frames are no stack, GeometryError where slices are missing, doubled or uneven.
    """
    first = frames[0]
    _check_alike(frames, name)
    if len(frames) < FEWEST:
        raise InputError(
            f"{name}: {len(frames)} slice{'s' * (len(frames) > 1)} only, the others are missing; a volume needs at "
            f"least {FEWEST}, export the whole series again"
        )
    normal = first.normal
    ordered = tuple(sorted(frames, key=lambda f: float(f.position @ normal)))
    positions = np.array([f.position for f in ordered])
    steps = np.diff(positions @ normal)
    _check_steps(ordered, positions, steps, name)
    step = (positions[-1] - positions[0]) / len(steps)
    affine = np.eye(4)
    affine[:3, 0] = first.along_row * first.spacing[1]
    affine[:3, 1] = first.along_column * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return ordered, LPS_TO_RAS @ affine, _remarks(ordered, step, normal)


def _check_alike(frames: tuple[Frame, ...], name: str) -> None:
    first = frames[0]
    for other in frames[1:]:
        difference = max(
            np.abs(other.along_row - first.along_row).max(), np.abs(other.along_column - first.along_column).max()
        )
        if difference > ALIKE:
            raise InputError(
                f"{name}: mixed orientation: {other.name} lies across {first.name} ({label('ImageOrientationPatient')} "
                f"differs by {difference:.4g}); a volume is one stack of parallel slices, keep one in the folder"
            )
        if (other.rows, other.columns) != (first.rows, first.columns):
            raise InputError(
                f"{name}: slices of {other.rows} x {other.columns} ({other.name}) and of {first.rows} x "
                f"{first.columns} pixels ({first.name}); a volume needs one size, keep one in the folder"
            )
        if not np.allclose(other.spacing, first.spacing, rtol=ALIKE, atol=0):
            raise InputError(
                f"{name}: {label('PixelSpacing')} is {other.spacing} in {other.name} and {first.spacing} in "
                f"{first.name}; a volume needs one, keep one in the folder"
            )
        if other.frame_of_reference and first.frame_of_reference not in ("", other.frame_of_reference):
            raise InputError(
                f"{name}: {other.name} and {first.name} have different frames of reference "
                f"({label('FrameOfReferenceUID')}): their positions cannot be compared; keep one in the folder"
            )


def _check_steps(ordered: tuple[Frame, ...], positions: np.ndarray, steps: np.ndarray, name: str) -> None:
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # of two distances, the shorter
    narrowest = int(np.argmin(steps))
    if steps[narrowest] < max(1e-3, 0.01 * usual):
        raise GeometryError(
            f"{name}: two slices at one position ({ordered[narrowest].name} and {ordered[narrowest + 1].name}); give "
            "one echo, phase or time point, or remove the copy"
        )
    mean = (positions[-1] - positions[0]) / len(steps)
    apart = np.linalg.norm(np.diff(positions, axis=0) - mean, axis=1)
    if apart.max() <= UNEVEN * np.linalg.norm(mean):
        return
    worst = int(np.argmax(np.abs(steps - usual)))
    ratio = steps[worst] / usual
    between = f"{ordered[worst].name} and {ordered[worst + 1].name}"
    if ratio > 1.5:
        count = max(1, round(ratio) - 1)
        raise GeometryError(
            f"{name}: about {count} slice{'s' * (count > 1)} missing between {between}: {steps[worst]:.4g} mm apart, "
            f"the others {usual:.4g} mm; a slice may be missing in the export, export the series again"
        )
    raise GeometryError(
        f"{name}: uneven positions: {between} lie {steps[worst]:.4g} mm apart, the others {usual:.4g} mm; a volume "
        "needs one distance, have the series resampled, or export it again"
    )


def _remarks(ordered: tuple[Frame, ...], step: np.ndarray, normal: np.ndarray) -> list[str]:
    remarks = []
    across = float(step @ normal)
    aside = float(np.linalg.norm(step - across * normal)) / across
    if aside > SHEARED:
        angle = np.degrees(np.arctan(aside))
        remarks.append(f"its slices are shifted sideways by {angle:.3g} degrees (a sheared stack); kept as they lie")
    spacing = ordered[0].slice_spacing
    if spacing and spacing > 0 and not _agree(spacing, across, ordered[0].thickness):
        times = round(across / spacing)
        words = f"{label('SpacingBetweenSlices')} says {spacing:g} mm, but they lie {across:.4g} mm apart"
        if times > 1 and abs(across / spacing - times) < UNEVEN:
            remarks.append(f"{words}: each {times}. slice only may have been exported")
        else:
            remarks.append(f"{words}: positions count")
    return remarks


def _agree(spacing: float, across: float, thickness: float | None) -> bool:
    """Whether the stated spacing is the distance; or the gap, as some vendors have it."""
    return abs(spacing - across) <= 0.05 * across or abs(spacing + (thickness or 0.0) - across) <= 0.05 * across
