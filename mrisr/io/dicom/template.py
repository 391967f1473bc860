"""What all slices of a derived series share: patient, study and acquisition of the source, and what says "derived"."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any
from warnings import warn

from mrisr import __version__
from mrisr.errors import MrisrWarning, because
from mrisr.io.dicom import uids
from mrisr.io.dicom.frame import Frame
from mrisr.io.dicom.header import MR_IMAGE, OWN_MARK
from mrisr.io.dicom.series import Series
from mrisr.io.dicom.values import Values, label

# The first two letters of a manufacturer, in sequences too, tell dcm2niix the vendor, whose peculiarities it then
# applies; these are no vendor's. The scanner's own is named in DerivationDescription, and in the source images.
MANUFACTURER = "Open source"
SERIES_STEP = 1000
LARGEST_NUMBER = 2**31 - 1  # of DICOM's integer strings
LONGEST_DESCRIPTION = 64

PATIENT = (
    "PatientName PatientID IssuerOfPatientID PatientBirthDate PatientBirthTime PatientSex PatientAge PatientSize "
    "PatientWeight PatientIdentityRemoved DeidentificationMethod"
)
STUDY = "StudyInstanceUID StudyDate StudyTime StudyID AccessionNumber ReferringPhysicianName StudyDescription"
ACQUISITION = (
    "SeriesDate SeriesTime AcquisitionDate AcquisitionTime AcquisitionDateTime ContentDate ContentTime InstitutionName "
    "BodyPartExamined Laterality PatientPosition ProtocolName PositionReferenceIndicator "
    "ScanningSequence SequenceVariant ScanOptions SequenceName MRAcquisitionType RepetitionTime EchoTime "
    "EchoTrainLength InversionTime EchoNumbers NumberOfAverages ImagingFrequency ImagedNucleus MagneticFieldStrength "
    "FlipAngle PixelBandwidth ContrastBolusAgent AcquisitionNumber "
    "LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod"
)
# Present in every MR image, with a value or without (DICOM's type 2).
ALWAYS = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
    "ReferringPhysicianName PositionReferenceIndicator ScanOptions MRAcquisitionType RepetitionTime EchoTime "
    "EchoTrainLength"
)
# What enhanced MR calls otherwise.
RENAMED = {
    "EchoTime": "EffectiveEchoTime",
    "InversionTime": "InversionTimes",
    "ImagingFrequency": "TransmitterFrequency",
    "ImagedNucleus": "ResonantNucleus",
    "SequenceName": "PulseSequenceName",
}
SEQUENCES = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}


def base(series: Series, facts: Mapping, series_uid: str) -> Any:
    """The data set that each slice starts from. It shares no element with the source's."""
    from pydicom.dataset import Dataset

    values, dataset = series.values, Dataset()
    _copy(dataset, values, "SpecificCharacterSet")
    dataset.SOPClassUID, dataset.Modality = MR_IMAGE, "MR"
    for key in f"{PATIENT} {STUDY} {ACQUISITION}".split():
        _copy(dataset, values, key)
    _sequence(dataset, values)
    _conditional(dataset, series.name)
    for key in ALWAYS.split():
        if key not in dataset:
            setattr(dataset, key, None)
    if not dataset.get("StudyInstanceUID"):
        dataset.StudyInstanceUID = uids.uid_of("study", *(f.sop_instance for f in series.frames))
        warn(f"{series.name}: no {label('StudyInstanceUID')}; one was generated", MrisrWarning, stacklevel=4)
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = series_uid, series.frame_of_reference
    kinds = series.frames[0].image_type
    dataset.ImageType = ["DERIVED", "SECONDARY", kinds[2] if len(kinds) > 2 and kinds[2] else "OTHER", "RESAMPLED"]
    dataset.SeriesNumber = _number(values, series.name)
    dataset.SeriesDescription = _description(values.text("SeriesDescription"))
    _declare(dataset, series, facts)
    return dataset


def source(frame: Frame) -> Any:
    """The reference to one source image."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = frame.sop_class or MR_IMAGE, frame.sop_instance
    if frame.multi_frame:
        item.ReferencedFrameNumber = frame.number
    item.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
    return item


def mrisr_version() -> str:
    """As the series states it."""
    return __version__


def _declare(dataset: Any, series: Series, facts: Mapping) -> None:
    """Everything by which a reader, human or not, sees that this is synthetic, and what made it."""
    from pydicom.dataset import Dataset

    values = series.values
    scanner = " ".join(filter(None, (values.text("Manufacturer"), values.text("ManufacturerModelName"))))
    model = f"{facts.get('model', 'unknown')} ({str(facts.get('weights') or 'no checksum')[:12]})"
    sizes = [" x ".join(f"{v:.3g}" for v in facts[k]["voxel_size"]) for k in ("input", "target") if facts.get(k)]
    dataset.SyntheticData = "YES"
    dataset.BurnedInAnnotation = "YES" if series.values.word("BurnedInAnnotation") == "YES" else "NO"
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, "mrisr"
    dataset.SoftwareVersions = [mrisr_version(), f"model {model}"[:64]]
    dataset.DerivationDescription = (
        f"Super-resolution by mrisr {mrisr_version()}, model {model}, mode {facts.get('mode', 'unknown')}"
        + (f", voxels of {sizes[0]} to {sizes[1]} mm" if len(sizes) == 2 else "")
        + (f", {series.group[:200]} of its series" if series.group else "")
        + ". Detail above the acquired resolution is synthesised."
        + (f" Acquired on {scanner[:128]}." if scanner else "")
    )[:1024]
    dataset.DerivationCodeSequence = [_code("113085", "Spatial resampling")]
    maker = f"mrisr {mrisr_version()}, model {model}"
    dataset.ImageComments = f"RESEARCH, SYNTHETIC DETAIL, not for diagnosis. {maker}. Read beside the original."
    here = Dataset()
    here.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    here.Manufacturer, here.ManufacturerModelName = MANUFACTURER, "mrisr"
    here.SoftwareVersions = mrisr_version()
    here.ContributionDescription = "Super-resolution (research software, not a medical device)"
    dataset.ContributingEquipmentSequence = [here]


def _sequence(dataset: Any, values: Values) -> None:
    """ScanningSequence and SequenceVariant, which enhanced MR says in other words."""
    if "ScanningSequence" not in dataset:
        words = list(SEQUENCES.get(values.word("EchoPulseSequence"), ["RM"]))
        words += ["IR"] if values.word("InversionRecovery") == "YES" else []
        words += ["EP"] if values.word("EchoPlanarPulseSequence") == "YES" else []
        dataset.ScanningSequence = words
    if "SequenceVariant" not in dataset:
        dataset.SequenceVariant = "SK" if values.word("SegmentedKSpaceTraversal") not in ("", "SINGLE") else "NONE"


def _conditional(dataset: Any, name: str) -> None:
    """What DICOM wants only under conditions, or in a form that sources do not keep."""
    if "IR" not in dataset.ScanningSequence:
        dataset.pop("InversionTime", None)
    elif "InversionTime" not in dataset:
        dataset.InversionTime = None
    if "PatientPosition" not in dataset:
        dataset.PatientPosition = None
    if "BodyPartExamined" not in dataset and "Laterality" not in dataset:
        dataset.Laterality = None
    age = str(dataset.get("PatientAge", "000Y"))
    if not re.fullmatch(r"\d{1,3}[DWMY]", age):
        warn(
            f"{name}: {label('PatientAge')} is {age!r}, no age; left out of what is written", MrisrWarning, stacklevel=5
        )
        del dataset.PatientAge
    elif len(age) < 4:
        dataset.PatientAge = age.zfill(4)


def _copy(dataset: Any, values: Values, key: str) -> None:
    """A copy of the source's element, in the representation that DICOM gives it; nothing if it is empty."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    for name in (key, RENAMED.get(key)):
        layer = values.layer(name) if name else None
        if layer is None:
            continue
        try:
            value = copy.deepcopy(layer[tag_for_keyword(name)].value)
        except Exception as error:  # noqa: BLE001 - an unreadable value of a damaged header
            warn(
                f"{values.where}: {label(name)} is left out of what is written ({because(error)})",
                MrisrWarning,
                stacklevel=5,
            )
            continue
        if value is None or value == "" or (isinstance(value, (list, tuple)) and not len(value)):
            continue
        tag = tag_for_keyword(key)
        if name != key and isinstance(value, float):
            from pydicom.valuerep import DSfloat

            value = DSfloat(value, auto_format=True) if dictionary_VR(tag) == "DS" else value
        dataset.add_new(tag, dictionary_VR(tag), value)
        return


def _number(values: Values, name: str) -> int | None:
    """Of the derived series; empty, as DICOM allows, where the source's leaves no room for it."""
    number = (values.whole("SeriesNumber") or 0) + SERIES_STEP
    if number <= LARGEST_NUMBER:
        return number
    text = f"{name}: {label('SeriesNumber')} + {SERIES_STEP} is {number}, more than DICOM can say; left empty"
    warn(text, MrisrWarning, stacklevel=5)
    return None


def _description(text: str) -> str:
    room = LONGEST_DESCRIPTION - len(OWN_MARK) - 1
    return f"{text[:room].rstrip()} {OWN_MARK}".lstrip()


def _code(value: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
