"""What a reader of the result should know of a volume's frames; what cannot be used is refused."""

from __future__ import annotations

import numpy as np

from mrisr.errors import InputError
from mrisr.io.dicom.frame import Frame
from mrisr.io.dicom.header import ENHANCED_MR, LEGACY_ENHANCED_MR, MR_IMAGE
from mrisr.io.dicom.resolution import usable
from mrisr.io.dicom.values import label

MAPS = ("ADC", "FA", "FIELD_MAP", "FIELD MAP", "B0", "B0 MAP", "T1 MAP", "T2 MAP", "T2_STAR MAP", "TTP", "CBF", "CBV")
# Pictures that are computed of several slices, and the rough ones that only plan a scan.
NO_SLICES = ("PROJECTION IMAGE", "MIP", "MNIP", "MAX_IP", "MIN_IP", "MEAN_IP", "LOCALIZER")


def of(ordered: tuple[Frame, ...], records: list[Frame]) -> list[str]:
    """Doubts about a volume's frames, in order, of all `records` of their series, in words.

    Raises InputError for phase images, and for frames that do not belong together.
    """
    first, remarks = ordered[0], []
    kinds = "\\".join(first.image_type)
    if first.component == "PHASE":
        raise InputError(
            f"{first.name}: a phase image ({label('ImageType')}: {kinds}): interpolation across its wraps would make "
            "values up; give the magnitude"
        )
    if first.component in ("REAL", "IMAGINARY") or any(kind in MAPS for kind in first.image_type):
        remarks.append(
            f"{first.component.lower() or 'a map'}, not a magnitude image ({kinds}); the model knows those only"
        )
    if first.inverted:
        remarks.append(f"{label('PhotometricInterpretation')} is MONOCHROME1 (white is low): inverted")
    if first.sop_class not in (MR_IMAGE, ENHANCED_MR, LEGACY_ENHANCED_MR):
        remarks.append(
            f"{label('SOPClassUID')} is {first.sop_class or 'absent'}, not an MR image; read by its modality"
        )
    if len({f.inverted for f in ordered}) > 1:
        raise InputError(f"{first.name}: MONOCHROME1 and MONOCHROME2 in one volume; export it again")
    patients = {f.values.uid("PatientID") for f in ordered}
    if len(patients) > 1:
        raise InputError(f"{first.name}: {label('PatientID')} is another in other slices; give one patient's folder")
    return remarks + _pixels(first) + _lengths(first) + _incomplete(ordered, records)


def _pixels(first: Frame) -> list[str]:
    """What was done to the pixels before they came."""
    values, remarks = first.values, []
    assumptions = (("PixelRepresentation", "no sign"), ("BitsStored", f"all {first.bits_allocated} bits"))
    absent = [(key, what) for key, what in assumptions if values.whole(key) is None]
    remarks += [f"no {label(key)}: voxels of {what} are taken" for key, what in absent]
    high = values.whole("HighBit")
    if high is not None and high != first.bits_stored - 1:
        remarks.append(
            f"{label('HighBit')} is {high} where {first.bits_stored} bits are stored, and {first.bits_stored - 1} is "
            "due: the lowest bits are taken"
        )
    if values.word("LossyImageCompression") == "01":
        remarks.append(f"{label('LossyImageCompression')}: compressed with losses, whose traces are sharpened too")
    if values.word("BurnedInAnnotation") == "YES":
        remarks.append(
            f"{label('BurnedInAnnotation')}: text stands in the picture; it is upscaled as if it were tissue"
        )
    kind = next((kind for kind in first.image_type if kind in NO_SLICES), None)
    if kind:
        remarks.append(f"{label('ImageType')} says {kind}: no slices of a scan to be upscaled")
    return remarks


def _lengths(first: Frame) -> list[str]:
    lengths = (("SliceThickness", first.thickness), ("SpacingBetweenSlices", first.slice_spacing))
    return [f"{label(k)} is {v:g} mm: not used" for k, v in lengths if v is not None and not usable(v)]


def padded(frames: tuple[Frame, ...], data: np.ndarray) -> str:
    """Of the voxels [column, row, slice]: how many are the padding that the header states, in words, or ""."""
    first = frames[0]
    value = first.values.whole("PixelPaddingValue")
    if value is None:
        return ""
    if first.signed and value >= 2 ** (first.bits_allocated - 1):  # told by no type whether it has a sign
        value -= 2**first.bits_allocated
    count = sum(
        int((data[..., k] == np.float32(value * frame.slope + frame.intercept)).sum()) for k, frame in enumerate(frames)
    )
    if not count or value * first.slope + first.intercept == 0:
        return ""
    return f"{count} voxels are padding ({label('PixelPaddingValue')}: {value}), no signal: a mask may be due"


def _incomplete(ordered: tuple[Frame, ...], records: list[Frame]) -> list[str]:
    """Signs that slices are missing at an end, where positions cannot tell."""
    first, remarks = ordered[0], []
    count = first.values.number("ImagesInAcquisition")
    if count and count > len(records):
        remarks.append(
            f"{label('ImagesInAcquisition')} says {count:g}, but there are {len(records)}: slices may be missing at "
            "an end"
        )
    numbers = sorted(f.instance for f in ordered if f.instance is not None)
    alone = len(ordered) == len(records) and first.of == 1
    if alone and len(numbers) == len(ordered) and numbers[0] > 1 and numbers[-1] - numbers[0] == len(numbers) - 1:
        remarks.append(
            f"{label('InstanceNumber')} runs from {numbers[0]} to {numbers[-1]}: slices before it may be missing"
        )
    return remarks
