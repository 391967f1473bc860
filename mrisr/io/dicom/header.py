"""One DICOM file: its bytes parsed within limits, and what tells which series it belongs to."""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

from mrisr.errors import InputError, because
from mrisr.io.dicom.parts import HEAD, Part, bare
from mrisr.io.dicom.values import Values, label

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
LEGACY_ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.4"
DIRECTORY = "1.2.840.10008.1.3.10"
DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)

# What decoders take from a data set; the rest of it is stated by `mrisr.io.dicom.frame.decode`.
FOR_PIXELS = [0x7FE00001, 0x7FE00002, 0x7FE00010]
LARGEST_SIDE = 4096  # rows or columns; MR slices have up to 2048
MOST_FRAMES = 100_000
LARGEST_INFLATED = 2 << 30  # bytes of a deflated data set
OWN_MARK = "RESEARCH SYNTH"  # in the series description of what `write` makes


@dataclass(frozen=True, eq=False)
class Header:
    """What one file says of itself. `dataset` is without its pixels; `notes` are doubts to pass on."""

    part: Part
    dataset: Any
    values: Values
    syntax: str
    series_uid: str
    series_number: int | None
    description: str
    has_pixels: bool
    cut: str  # what is wrong with the pixels' number or kind, or ""
    notes: tuple[str, ...] = ()

    @property
    def is_picture(self) -> bool:
        """Reports, presentation states and the like have no rows."""
        return self.values.has("Rows")

    @property
    def damaged(self) -> bool:
        """No picture, though its class is one, or without what reports and the like state as well."""
        sop_class = self.values.uid("SOPClassUID")
        whole = sop_class == DIRECTORY or (self.values.uid("SOPInstanceUID") and self.values.word("Modality"))
        return not self.is_picture and (sop_class in (MR_IMAGE, ENHANCED_MR, LEGACY_ENHANCED_MR) or not whole)

    @property
    def multi_frame(self) -> bool:
        """NumberOfFrames of 1 is a classic picture, unless the class says enhanced."""
        return self.values.uid("SOPClassUID") in (ENHANCED_MR, LEGACY_ENHANCED_MR) or (self.frame_count or 1) > 1

    @property
    def frame_count(self) -> int | None:
        count = self.values.whole("NumberOfFrames")
        if count is not None and not 1 <= count <= MOST_FRAMES:
            raise self.values.refusal("NumberOfFrames", f"1 to {MOST_FRAMES}")
        return count

    @property
    def own(self) -> bool:
        """Whether mrisr wrote it."""
        return OWN_MARK in self.description and self.values.word("SyntheticData") == "YES"


def read(part: Part) -> Header:
    """The header of one file. Raises InputError naming it where it is damaged or not DICOM."""
    dataset, syntax, has_pixels, cut, notes = parse(part, pixels=False)
    values = Values([dataset], str(part))
    return Header(
        part,
        dataset,
        values,
        syntax,
        values.uid("SeriesInstanceUID"),
        values.whole("SeriesNumber"),
        values.text("SeriesDescription"),
        has_pixels,
        cut,
        notes,
    )


def parse(part: Part, *, pixels: bool) -> tuple[Any, str, bool, str, tuple[str, ...]]:
    """(data set, transfer syntax, whether pixel data follow, what is wrong with them, notes) of a file's bytes.

    pixels  whether the data set is to hold them
    """
    pydicom = _pydicom(part)
    data = part.read()
    notes = []
    if not data:
        raise InputError(f"{part}: is empty (0 bytes); copy it again")
    if data[128:132] != b"DICM":
        if not bare(data[:HEAD]):
            raise InputError(f"{part}: is no DICOM file: cut short, or damaged at its start; copy it again")
        notes.append(f"{part}: lacks the preamble of a DICOM file; read all the same")
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")  # of attributes that nobody reads here; ours have parsers of their own
            syntax, stream = _open(pydicom, data, part)
            start = stream.tell()
            last = None if pixels else (lambda tag, vr, length: tag in (0x7FE00008, 0x7FE00009, 0x7FE00010))
            dataset = pydicom.filereader.read_dataset(
                stream,
                syntax == IMPLICIT,
                syntax != BIG_ENDIAN,
                stop_when=last,
                specific_tags=FOR_PIXELS if pixels else None,
            )
            if start == stream.tell() or not len(dataset):
                raise InputError(f"{part}: holds no DICOM attributes; it is cut short or damaged, copy it again")
            has_pixels, cut = _pixels_left(dataset, syntax, stream, part) if not pixels else (True, "")
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file raises anything from struct.error to RecursionError
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{part}: cannot be read as DICOM ({reason}); copy it again") from error
    if pixels:
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.set_original_encoding(syntax == IMPLICIT, syntax != BIG_ENDIAN, getattr(dataset, "_charset", None))
    return dataset, syntax, has_pixels, cut, tuple(notes)


def _open(pydicom, data: bytes, part: Part) -> tuple[str, io.BytesIO]:
    """(transfer syntax, stream at the data set). BytesIO never takes more memory than there are bytes."""
    if data[128:132] == b"DICM":
        stream = io.BytesIO(data)
        stream.seek(132)
        meta = _meta(pydicom, stream)
    else:
        stream = io.BytesIO(data)
        meta = _meta(pydicom, stream) if data[:2] == b"\2\0" else None
    syntax = "" if meta is None else Values([meta], str(part)).uid("TransferSyntaxUID")
    if not syntax:
        here = stream.tell()
        head = data[here : here + 6]
        explicit = head[4:6].isalpha() and head[4:6].isupper()
        big = explicit and head[0] == 0 and head[1] != 0
        syntax = BIG_ENDIAN if big else EXPLICIT if explicit else IMPLICIT
    if syntax == DEFLATED:
        return syntax, io.BytesIO(_inflated(data[stream.tell() :], part))
    return syntax, stream


def _meta(pydicom, stream: io.BytesIO):
    """The group of file meta attributes, which is explicit little endian always."""
    return pydicom.filereader.read_dataset(
        stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2, bytelength=None
    )


def _inflated(data: bytes, part: Part) -> bytes:
    unpack = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = unpack.decompress(data, LARGEST_INFLATED)
    except zlib.error as error:
        raise InputError(f"{part}: its deflated data are damaged ({because(error)}); copy it again") from error
    if unpack.unconsumed_tail:
        raise InputError(f"{part}: inflates to more than {LARGEST_INFLATED} bytes; no slice is that large")
    if not unpack.eof:
        raise InputError(f"{part}: its deflated data are cut short; copy it again")
    return content


def _pixels_left(dataset, syntax: str, stream: io.BytesIO, part: Part) -> tuple[bool, str]:
    """(whether pixel data follow, what is wrong with their number or kind). `stream` stands where parsing stopped."""
    here = stream.tell()
    head = stream.read(12)
    if len(head) < 8:
        return False, "the file ends before its pixels" if Values([dataset], "").has("Rows") else ""
    values = Values([dataset], str(part))
    order = "big" if syntax == BIG_ENDIAN else "little"
    if int.from_bytes(head[2:4], order) != 0x0010:
        kind = f"{label('FloatPixelData')} or the like"
        return True, f"its pixels are floating-point numbers ({kind}), which no MR image has"
    if syntax not in NATIVE or not values.has("Rows"):
        return True, ""
    size = stream.seek(0, io.SEEK_END) - here - (8 if syntax == IMPLICIT else 12)
    sides = [values.whole(key) for key in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")]
    bits = values.whole("BitsAllocated")
    if sides[0] is None or sides[1] is None or bits is None:
        return True, ""
    due = (sides[0] * sides[1] * (sides[2] or 1) * (sides[3] or 1) * bits + 7) // 8
    return True, f"its pixels are cut short: {max(0, size)} of {due} bytes" if size < due else ""


def check_picture(header: Header) -> str:
    """Why a picture cannot be used at all, in words that follow its name, or ""."""
    values = header.values
    sop_class, modality = values.uid("SOPClassUID"), values.word("Modality")
    colour = values.word("PhotometricInterpretation")
    samples = values.whole("SamplesPerPixel")
    if colour not in ("", "MONOCHROME1", "MONOCHROME2") or (samples or 1) != 1:
        return f"colour ({colour or f'{samples} samples a pixel'}), not one number per voxel; give the original series"
    if modality not in ("", "MR"):
        return f"modality {modality} ({label('Modality')}), not MR; mrisr knows brain MRI only"
    if sop_class not in (MR_IMAGE, ENHANCED_MR, LEGACY_ENHANCED_MR) and modality != "MR":
        return f"neither an MR image by its class ({label('SOPClassUID')}: {sop_class or 'absent'}) nor by its modality"
    kinds = values.words("ImageType")
    if "MOSAIC" in kinds:
        return "a MOSAIC (many slices tiled in one picture); have it exported as slices, or convert it with dcm2niix"
    return ""


def _pydicom(part: Part):
    try:
        import pydicom
        import pydicom.filereader
    except ImportError as error:
        raise InputError(f"{part}: DICOM needs pydicom; install it with: pip install '.[dicom]'") from error
    return pydicom
