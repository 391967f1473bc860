"""Both neighbours of a node: series of small MR images to send, and a PACS that can misbehave."""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom import AE, evt


def series(n: int = 6, name: str = "DOE^JANE", matrix: int = 12, value=None) -> list[Dataset]:
    """A classic series of `n` slices of 2 mm, head-like, of a patient of that name."""
    shared = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
    }
    grid = np.linspace(-1, 1, matrix)
    made = []
    for k in range(n):
        ds = Dataset()
        for key, uid in shared.items():
            setattr(ds, key, uid)
        ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = MRImageStorage, generate_uid(), "MR"
        ds.PatientName, ds.PatientID, ds.StudyDate, ds.StudyTime = name, "4711", "20240101", "120000"
        ds.PatientBirthDate, ds.PatientSex, ds.StudyID, ds.AccessionNumber = "19700101", "O", "1", "1"
        ds.ReferringPhysicianName, ds.Manufacturer, ds.PositionReferenceIndicator = "", "ACME", ""
        ds.SeriesNumber, ds.InstanceNumber, ds.SeriesDescription = 4, k + 1, "t1 head"
        ds.ImageType, ds.ScanningSequence, ds.SequenceVariant = ["ORIGINAL", "PRIMARY", "M", "ND"], "GR", "SP"
        ds.ScanOptions, ds.MRAcquisitionType, ds.EchoTime, ds.RepetitionTime = "", "3D", 3.0, 2000.0
        ds.EchoTrainLength, ds.SliceThickness, ds.PatientPosition = 1, 2.0, "HFS"
        ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [2.0, 2.0]
        ds.ImagePositionPatient = [-10.0, -12.0, 2.0 * k]
        ds.Rows = ds.Columns = matrix
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        z = 2 * k / max(n - 1, 1) - 1
        blob = 1000 * np.exp(-2 * (grid[:, None] ** 2 + grid**2 + z * z)) + 50 * np.sin(9 * grid) ** 2 + 20
        ds.PixelData = (blob if value is None else np.full_like(blob, value)).astype("<u2").tobytes()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        made.append(ds)
    return made


def associate(node, called: str = "MRISR", calling: str = "SCANNER"):
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    entity.add_requested_context("1.2.840.10008.1.1")
    return entity.associate(*node.address, ae_title=called)


def send(node, datasets, end: str = "release") -> list[int]:
    """Store them in one association that ends by "release", "abort" or "cut" (the machine is gone): the statuses."""
    association = associate(node)
    assert association.is_established
    statuses = [association.send_c_store(ds).get("Status") for ds in datasets]
    if end == "release":
        association.release()
    elif end == "abort":
        association.abort()
    else:
        association.dul.socket.socket.close()
        association.kill()
    return statuses


def deliver(node, datasets) -> None:
    """Store them all, again where a node of short patience hung up on a slow machine."""
    for _ in range(30):
        try:
            if send(node, datasets) == [0] * len(datasets):
                return
        except (AssertionError, RuntimeError):  # not established, or no longer
            pass
    raise AssertionError("the node never took all of them")


def derive(source: Path, target: Path, progress) -> None:
    """A stand-in: every file once more, with UIDs of a hash of its own, as the real one does."""
    for path in sorted(source.glob("*.dcm")):
        progress("write", 0.5)
        ds = dcmread(path)
        ds.SyntheticData = "YES"
        for key in ("SOPInstanceUID", "SeriesInstanceUID"):
            ds[key].value = f"2.25.{int(hashlib.sha256(ds[key].value.encode()).hexdigest()[:24], 16)}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(target / path.name)


class Pacs:
    """Takes what is sent to it. `status`: what it answers, to all or to what is in `refused`. `stored`: SOP instance
    UID -> dataset."""

    def __init__(self) -> None:
        self.stored: dict[str, Dataset] = {}
        self.status, self.times = 0x0000, 0
        self.refused: set[str] | None = None
        self._lock = threading.Lock()
        self.port = 0

    def __enter__(self) -> Pacs:
        self.start()
        return self

    def start(self) -> None:
        entity = AE(ae_title="PACS")
        entity.add_supported_context(MRImageStorage)
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        self._server.shutdown()

    def __exit__(self, *_) -> None:
        self.stop()

    def _store(self, event) -> int:
        with self._lock:
            self.times += 1
            ds = event.dataset
            if self.status == 0 or self.refused is not None and ds.SOPInstanceUID not in self.refused:
                self.stored[str(ds.SOPInstanceUID)] = ds
                return 0
            return self.status


def expected(datasets) -> set[str]:
    """SOP instance UIDs that `derive` makes of them."""
    return {f"2.25.{int(hashlib.sha256(ds.SOPInstanceUID.encode()).hexdigest()[:24], 16)}" for ds in datasets}


def clone(folder: Path, target: Path) -> Path:
    """What a killed node leaves: a copy of its folder as it is now."""
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("lock")))


def empty(node) -> bool:
    """Whether nothing of any series is left in a node's folder."""
    return not node.spool.all() and not list(node.spool.work.iterdir())
