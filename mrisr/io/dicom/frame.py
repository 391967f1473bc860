"""One flat record per frame, the same for classic files (a frame each) and enhanced ones (many)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrisr.errors import InputError, because
from mrisr.io.dicom.header import LARGEST_SIDE, NATIVE, Header
from mrisr.io.dicom.parts import Part
from mrisr.io.dicom.values import Values, label

# The functional groups whose attributes a frame takes over, shared ones where the frame has none of its own.
GROUPS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "FrameVOILUTSequence",
    "TemporalPositionSequence",
    "CardiacSynchronizationSequence",
    "MRImageFrameTypeSequence",
    "MREchoSequence",
    "MRModifierSequence",
    "MRFOVGeometrySequence",
    "MRTimingAndRelatedParametersSequence",
    "MRDiffusionSequence",
    "MRAveragesSequence",
    "MRImagingModifierSequence",
    "MRMetaboliteMapSequence",
)
XA_CREATOR = "SIEMENS MR SDI 02"  # of (0021,xx78) and (0021,xx79): DIS2D, DIS3D or ND
ALIKE = 1e-4  # of directions and, relatively, of spacings; GE's directions differ by 6e-8 between slices
SQUARE_ENOUGH = 1e-3  # of the length and the right angle of directions


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane of pixels and all that is needed of its header. Lengths in mm, times in ms, LPS coordinates.

    number         within its file, from 1
    spacing        between rows, between columns
    along_row      direction of growing column index; along_column: of growing row index; unit vectors (3,)
    position       of the first pixel's centre (3,)
    component      "MAGNITUDE", "PHASE", "REAL", "IMAGINARY", or "" where nothing says
    image_type     ImageType or FrameType, with what Siemens' XA says of distortion correction
    acquired       width that was really acquired, along a row, along a column, across slices; None where unknown
    window         (centre, width) or None
    """

    part: Part
    number: int
    values: Values = field(repr=False)
    syntax: str
    sop_class: str
    sop_instance: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    inverted: bool
    slope: float
    intercept: float
    spacing: tuple[float, float]
    along_row: np.ndarray
    along_column: np.ndarray
    position: np.ndarray
    frame_of_reference: str
    image_type: tuple[str, ...]
    component: str
    thickness: float | None
    slice_spacing: float | None
    echo_time: float | None
    echo_number: int | None
    temporal: int | None
    stack: str
    instance: int | None
    acquisition: int | None
    b_value: float | None
    window: tuple[float, float] | None
    of: int = 1  # frames in its file
    multi_frame: bool = False

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.along_row, self.along_column)

    @property
    def name(self) -> str:
        """As messages call it."""
        return self.values.where


def frames(header: Header) -> list[Frame]:
    """The frames of one file. Raises InputError naming file, tag and value for what cannot be used."""
    if not header.multi_frame:
        return [_frame(header, header.values, 1)]
    count = header.frame_count
    if count is None:
        raise InputError(f"{header.part}: no {label('NumberOfFrames')}, and its class is multi-frame; export it again")
    each = _items(header, header.dataset, "PerFrameFunctionalGroupsSequence")
    if len(each) != count:
        raise InputError(
            f"{header.part}: NumberOfFrames is {count}, but {len(each)} frames are described "
            f"({label('PerFrameFunctionalGroupsSequence')}); export it again"
        )
    shared = _items(header, header.dataset, "SharedFunctionalGroupsSequence")
    below = [g for item in shared[:1] for g in _groups(header, item)]
    return [
        _frame(header, Values([*_groups(header, item), *below, header.dataset], f"{header.part}, frame {n}"), n)
        for n, item in enumerate(each, start=1)
    ]


def _groups(header: Header, item: Any) -> list[Any]:
    return [group for key in GROUPS for group in _items(header, item, key)[:1]]


def _items(header: Header, dataset: Any, key: str) -> list[Any]:
    """The items of a sequence; [] where it is absent."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(key)
    try:
        if tag not in dataset:
            return []
        value = dataset[tag].value
        return [item for item in value if hasattr(item, "get_item")] if value else []
    except Exception as error:  # noqa: BLE001 - a damaged sequence raises anything
        raise InputError(
            f"{header.part}: {label(key)} cannot be read ({because(error)}); copy the file again"
        ) from error


def _frame(header: Header, values: Values, number: int) -> Frame:
    rows, columns = _side(values, "Rows"), _side(values, "Columns")
    bits = values.whole("BitsAllocated")
    stored = values.whole("BitsStored") or bits
    if bits not in (8, 16, 32) or not 1 <= stored <= bits:
        key = "BitsAllocated" if bits not in (8, 16, 32) else "BitsStored"
        raise values.refusal(key, "8, 16 or 32 bits, of which as many are stored at most")
    orientation = np.array(values.required("ImageOrientationPatient", 6))
    along_row, along_column = _directions(values, orientation)
    spacing = values.required("PixelSpacing", 2)
    if min(spacing) < 1e-3 or max(spacing) > 1000:
        raise values.refusal("PixelSpacing", "two distances above 0 mm (0.001 to 1000)")
    if _items(header, header.dataset, "ModalityLUTSequence"):
        raise InputError(
            f"{values.where}: its values come from a table ({label('ModalityLUTSequence')}), which is not read here; "
            "export the series with RescaleSlope and RescaleIntercept"
        )
    sign = values.whole("PixelRepresentation")
    if sign not in (None, 0, 1):
        raise values.refusal("PixelRepresentation", "0 (no sign) or 1")
    slope = values.number("RescaleSlope")
    if slope == 0:
        raise values.refusal("RescaleSlope", "a factor other than 0")
    centre, width = values.numbers("WindowCenter"), values.numbers("WindowWidth")
    kinds = _image_type(header, values)
    return Frame(
        part=header.part,
        number=number,
        values=values,
        syntax=header.syntax,
        sop_class=header.values.uid("SOPClassUID"),
        sop_instance=header.values.uid("SOPInstanceUID"),
        rows=rows,
        columns=columns,
        bits_allocated=bits,
        bits_stored=stored,
        signed=sign == 1,
        inverted=values.word("PhotometricInterpretation") == "MONOCHROME1",
        slope=1.0 if slope is None else slope,
        intercept=values.number("RescaleIntercept") or 0.0,
        spacing=spacing,
        along_row=along_row,
        along_column=along_column,
        position=np.array(values.required("ImagePositionPatient", 3)),
        frame_of_reference=values.uid("FrameOfReferenceUID"),
        image_type=kinds,
        component=_component(values, kinds),
        thickness=values.number("SliceThickness"),
        slice_spacing=values.number("SpacingBetweenSlices"),
        echo_time=_first(values, "EffectiveEchoTime", "EchoTime"),
        echo_number=_whole(values, "EchoNumbers"),
        temporal=_whole(values, "TemporalPositionIndex") or _whole(values, "TemporalPositionIdentifier"),
        stack=values.uid("StackID"),
        instance=_whole(values, "InstanceNumber"),
        acquisition=_whole(values, "AcquisitionNumber"),
        b_value=_first(values, "DiffusionBValue"),
        window=(centre[0], width[0]) if centre and width and width[0] > 0 else None,
        multi_frame=header.multi_frame,
        of=(header.frame_count or 1) if header.multi_frame else 1,
    )


def _first(values: Values, *keys: str) -> float | None:
    """The first of several attributes that is there. Lists are legal here (echoes of one train): the first counts."""
    for key in keys:
        numbers = values.numbers(key)
        if numbers:
            return numbers[0]
    return None


def _whole(values: Values, key: str) -> int | None:
    number = _first(values, key)
    return None if number is None else int(number)


def _side(values: Values, key: str) -> int:
    number = values.whole(key)
    if number is None or not 1 <= number <= LARGEST_SIDE:
        raise values.refusal(key, f"1 to {LARGEST_SIDE}")
    return number


def _directions(values: Values, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > SQUARE_ENOUGH or abs(row @ column) > SQUARE_ENOUGH:
        raise values.refusal("ImageOrientationPatient", "two unit vectors at right angles")
    return row / lengths[0], column / lengths[1]


def _image_type(header: Header, values: Values) -> tuple[str, ...]:
    """FrameType before ImageType, and the distortion correction that Siemens' XA states in private elements only."""
    from pydicom.tag import Tag

    kinds = values.words("FrameType") or values.words("ImageType")
    for layer in values.layers:
        for tag in [
            t for t in tuple(layer.keys()) if t.group == 0x0021 and t.elem > 0xFF and t.elem & 0xFF in (0x78, 0x79)
        ]:
            word = _private_text(layer, tag).upper()
            creator = _private_text(layer, Tag(0x0021, tag.elem >> 8))
            if creator == XA_CREATOR and word in ("DIS2D", "DIS3D", "ND") and word not in kinds:
                kinds = (*kinds, word)
    return kinds


def _private_text(layer: Any, tag: Any) -> str:
    value = getattr(layer.get_item(tag), "value", None)
    return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else str(value or "").strip()


def _component(values: Values, kinds: tuple[str, ...]) -> str:
    word = values.word("ComplexImageComponent")
    if word in ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY"):
        return word
    letters = {"M": "MAGNITUDE", "P": "PHASE", "R": "REAL", "I": "IMAGINARY"}
    # Value 3 by Siemens and GE, 4 by Philips (`ORIGINAL\PRIMARY\M_SE\M\SE`); PHASE MAP by others.
    for kind in kinds[2:]:
        if kind in letters or kind in letters.values():
            return letters.get(kind, kind)
        if kind.startswith("PHASE"):
            return "PHASE"
    return ""


def decode(frame: Frame, dataset: Any) -> np.ndarray:
    """The pixels [row, column] of one frame in real units, float64; `dataset` is its file, pixels included.

    Raises InputError where they cannot be decoded.
    """
    from pydicom.pixels import pixel_array

    _state(frame, dataset)
    _check_length(frame, dataset)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = pixel_array(dataset, index=frame.number - 1 if frame.of > 1 else None)
    except Exception as error:  # noqa: BLE001 - each decoder has errors of its own
        reason = " ".join(str(error).split())[:200]
        more = "" if frame.syntax in NATIVE else "; compressed pixels need pip install '.[dicom]'"
        raise InputError(f"{frame.name}: pixels cannot be decoded ({reason}){more}; copy or export it again") from error
    if stored.shape != (frame.rows, frame.columns):
        if stored.shape == (1, frame.rows, frame.columns):
            stored = stored[0]
        else:
            raise InputError(f"{frame.name}: pixels of shape {stored.shape}; expected {frame.rows} x {frame.columns}")
    stored = stored.astype(np.float64)
    if frame.inverted:  # of all values that the bits can hold: white is the lowest
        stored = (-1.0 if frame.signed else 2.0**frame.bits_stored - 1) - stored
    return stored * frame.slope + frame.intercept


def _check_length(frame: Frame, dataset: Any) -> None:
    """Pixels for a row or a column more than the header states: that many columns would shear the picture, unseen."""
    if frame.syntax not in NATIVE:
        return  # each decoder holds its own stream against the header
    size, length = frame.bits_allocated // 8, len(dataset.PixelData)
    due = frame.rows * frame.columns * size * frame.of
    if length - due >= max(min(frame.rows, frame.columns) * size, 2):  # less than a row or a column is padding
        raise InputError(
            f"{frame.part}: {length} bytes of pixels, but {due} are due for {frame.rows} rows of {frame.columns} and "
            f"{frame.of} frame{'s' * (frame.of > 1)}; correct the header, or export again"
        )


def _state(frame: Frame, dataset: Any) -> None:
    """What the decoders read from the header, as this reader understood it."""
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = frame.rows, frame.columns, 1
    dataset.BitsAllocated, dataset.BitsStored = frame.bits_allocated, frame.bits_stored
    dataset.HighBit, dataset.PixelRepresentation = frame.bits_stored - 1, int(frame.signed)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.NumberOfFrames = frame.of
