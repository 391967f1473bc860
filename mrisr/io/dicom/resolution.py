"""How finely a series was really acquired, from its header: scanners fill the rim of k-space with zeros.

AcquisitionMatrix is (frequency rows, frequency columns, phase rows, phase columns), where "rows" counts what is
encoded along a row of the picture (columns of pixels) and "columns" what is encoded along a column.
"""

from __future__ import annotations

from mrisr.io.dicom.frame import Frame
from mrisr.io.dicom.values import label

ZERO_FILLED = 1.2  # stored samples per acquired one, from which on it is said
PER_MILLE = 1.001
WIDEST = 100.0  # mm


def acquired_mm(frames: tuple[Frame, ...], step: float) -> tuple[tuple[float, float, float], list[str]]:
    """(acquired width along a row, along a column and across slices, mm; remarks in words).

    frames  of one volume, in order
    step    distance between slices, mm

    A width within slices is never below the stored one; across slices it is the thickness of 2D slices. Rectangular
    fields of view, percent sampling and slices that overlap count.
    """
    first, notes = frames[0], []
    values = first.values
    stored = (first.spacing[1], first.spacing[0])
    counts, source = _matrix(first)
    phase = {"ROW": 0, "COL": 1, "COLUMN": 1}.get(values.word("InPlanePhaseEncodingDirection"))
    if phase is None and source == "AcquisitionMatrix":
        matrix = values.numbers("AcquisitionMatrix")
        phase = 0 if matrix[2] else 1
    widths = list(stored)
    for axis, pixels in enumerate((first.columns, first.rows)):
        if counts[axis]:
            view = pixels * stored[axis] * (_rectangular(first, axis, phase))
            widths[axis] = max(stored[axis], view / counts[axis])
        elif axis == phase and (percent := values.number("PercentSampling")) and 10 <= percent < 100:
            widths[axis], source = stored[axis] * 100 / percent, "PercentSampling"
    filled = [a for a in range(2) if widths[a] > ZERO_FILLED * stored[a]]
    if filled:
        axes = " and ".join(f"{widths[a]:.3g} mm along axis {a} (stored {stored[a]:.3g})" for a in filled)
        notes.append(f"zero-filled: {label(source)} says that {axes} was acquired; that is what the network is told")
    partial = values.word("PartialFourier") == "YES" or {"PFP", "PFF"} & set(values.words("ScanOptions"))
    if partial:
        notes.append("partial Fourier: along the phase axis it may be less sharp than its width says")
    for axis in range(2):
        if not usable(widths[axis]):
            raise values.refusal(source, f"counts that give less than {WIDEST:g} mm, not {widths[axis]:.4g} mm")
    two_d = values.word("MRAcquisitionType") == "2D" and usable(first.thickness)
    across = first.thickness if two_d else step
    if values.word("MRAcquisitionType") == "3D" and usable(first.thickness) and first.thickness > ZERO_FILLED * step:
        across = first.thickness
        notes.append(f"slices of {across:.3g} mm every {step:.3g} mm: across slices {across:.3g} mm was acquired")
    return (widths[0], widths[1], across), notes


def usable(length: float | None) -> bool:
    """Whether a stated thickness or distance, mm, can be that of a scan of a head."""
    return length is not None and 0 < length <= WIDEST


def _matrix(frame: Frame) -> tuple[tuple[float, float], str]:
    """(samples along a row, along a column; 0 where unknown), and the attribute that says so."""
    values = frame.values
    matrix = values.numbers("AcquisitionMatrix")
    if matrix and any(matrix):
        if len(matrix) != 4 or min(matrix) < 0:
            raise values.refusal("AcquisitionMatrix", "4 counts, of which 2 are 0")
        return (max(matrix[0], matrix[2]), max(matrix[1], matrix[3])), "AcquisitionMatrix"
    frequency = values.number("MRAcquisitionFrequencyEncodingSteps") or 0.0
    phase = values.number("MRAcquisitionPhaseEncodingStepsInPlane") or 0.0
    factor = values.number("ParallelReductionFactorInPlane") or 1.0
    row_wise = values.word("InPlanePhaseEncodingDirection") == "ROW"
    if not values.word("InPlanePhaseEncodingDirection") or min(frequency, phase) < 0:
        return (0.0, 0.0), ""
    pixels = frame.columns if row_wise else frame.rows
    if factor > PER_MILLE and phase * ZERO_FILLED < pixels:
        phase = 0.0  # nobody knows whether lines that were skipped are counted
    pair = (phase, frequency) if row_wise else (frequency, phase)
    return pair, "MRAcquisitionFrequencyEncodingSteps"


def _rectangular(frame: Frame, axis: int, phase: int | None) -> float:
    """The part of a picture's width that the field of view covers; a rectangular one may be padded to a square."""
    percent = frame.values.number("PercentPhaseFieldOfView")
    padded = frame.rows == frame.columns and abs(frame.spacing[0] - frame.spacing[1]) < 1e-3 * frame.spacing[0]
    if axis != phase or not padded or percent is None or not 10 <= percent < 100:
        return 1.0
    return percent / 100
