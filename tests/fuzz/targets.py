"""The entry points that read files, each with a sound file, ways to damage it, and what a user would go on to do."""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tests.fuzz.mutate import header_numbers, reshape, reshaped, some_bytes, within, zip_entries

EXPORT = Path(__file__).resolve().parents[1] / "export"


@dataclass(frozen=True)
class Target:
    """An entry point.

    Attributes:
        file: name of the damaged file; what it needs beside it is made by `sound`.
        sound: folder -> the sound file's bytes.
        damages: functions (bytes, rng) -> bytes.
        enter: path of the damaged file -> None, or what it raises.
        cases: how many in one round.
    """

    file: str
    sound: Callable[[Path], bytes]
    damages: tuple[Callable[[bytes, random.Random], bytes], ...]
    enter: Callable[[Path], None]
    cases: int = 100


def scan_data(shape=(6, 7, 5)) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32) + 1


AFFINE = np.array([[1.1, 0, 0, -3], [0, 1.2, 0.1, -4], [0, -0.1, 2.0, 5], [0, 0, 0, 1]], float)


@cache
def scan():
    """A sound scan of the size of the fields."""
    from mrisr.volume import Volume

    return Volume(scan_data(), AFFINE, name="scan")


def image_bytes(cls: str, data: np.ndarray) -> bytes:
    import nibabel as nib

    if cls == "mgh":
        return nib.MGHImage(data, AFFINE).to_bytes()
    image = getattr(nib, cls)(data, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    return image.to_bytes()


def read_image(path: Path) -> None:
    """Read, and make the image of a result: its header is the source's."""
    from mrisr.io import nifti

    volume = nifti.read(path)
    finer = volume.affine @ np.diag([0.5, 0.5, 0.5, 1])
    nifti.to_image(volume.replace(volume.data, finer)).to_bytes()


def pair(path: Path) -> None:
    (path.parent / "scan.img").write_bytes(scan_data().tobytes())
    read_image(path)


def hdr(folder: Path) -> bytes:
    import nibabel as nib

    maps = nib.Nifti1Pair.make_file_map({"header": io.BytesIO(), "image": io.BytesIO()})
    nib.Nifti1Pair(scan_data(), AFFINE).to_file_map(maps)
    return maps["header"].fileobj.getvalue()


def sidecar(folder: Path) -> bytes:
    (folder / "scan.nii").write_bytes(image_bytes("Nifti1Image", scan_data()))
    stated = {"SliceThickness": 3.0, "SpacingBetweenSlices": 3.3, "MRAcquisitionType": "2D", "ImageType": ["ND", "M"],
              "AcquisitionMatrix": [0, 256, 192, 0], "MagneticFieldStrength": 1.5, "Manufacturer": "Siemens",
              "NonlinearGradientCorrection": False, "Other": {"a": [1, {"b": None}]}}  # fmt: skip
    return json.dumps(stated).encode()


def read_sidecar(path: Path) -> None:
    from mrisr.io import nifti
    from mrisr.physics import gradnl
    from mrisr.physics.psf import parse_psf

    volume = nifti.read(path.with_suffix(".nii"))
    parse_psf("auto", volume.voxel_size, volume.meta)
    gradnl.scanner_correction(volume.meta)
    gradnl.check_vendor("a.grad", volume.meta)


def read_bias(path: Path) -> None:
    from mrisr import corrections

    corrections.read_field(path, scan())


def read_displacement(path: Path) -> None:
    from mrisr import corrections
    from mrisr.physics import gradnl

    distortion, _ = corrections.read_distortion(path, None, {})
    gradnl.correction(distortion, scan().grid)


GRAD = b"""#*[ Script ****
 win_low = 0, win_high = 0, win_algo = 0, win_dummy = 2;
 0.25 m = R0, lnorm = 4? A(1,0) = B(1,1) = A(1,1) = 0;
 0 = CoSyMode,
 Expansion in Spherical Harmonics
 NO.    TYPE    SPECTRUM        AXIS
  1     A( 3, 0)          -0.0945  z
  2     A( 5, 0)           0.0063  z
  3     A( 3, 1)          -0.0128  x
  4     B( 3, 1)          -0.0128  y
"""
COEF = b"""alpha_z 3 0 -0.0945
alpha_x 3 1 -0.0128
beta_y 3 1 -0.0128
"""


def read_coil(path: Path) -> None:
    import torch

    from mrisr.physics import coils

    found = coils.read(path, radius=250.0 if path.suffix == ".coef" else None)
    assert bool(torch.isfinite(found.displacement_at(torch.tensor([[10.0], [20.0], [-30.0]]))).all())


META = {"format": 1, "preset": "tiny", "sigma_data": 0.1, "trained_range": {"isotropic": [1, 4], "slice": [1.0, 8.0]},
        "guidance": ["gradnl"], "few_steps": [1, 2], "name": "x", "version": 1, "config": {"gradnl": 0.3, "bias": 0},
        "uncertainty": [{"samples": 8, "steps": 4, "scale": {"0.5": 0.7, "0.95": 3.0}}]}  # fmt: skip


@cache
def tiny_tensors() -> dict:
    import torch

    from mrisr.nn.presets import build

    torch.manual_seed(0)
    return build("tiny").state_dict()


def weights(folder: Path) -> bytes:
    from safetensors.torch import save

    return save(tiny_tensors(), metadata={"mrisr": json.dumps(META)})


def meta_reshaped(data: bytes, rng: random.Random) -> bytes:
    """Another "mrisr" header in a sound file; or another safetensors header, of the right length."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.7:
        held = header["__metadata__"]["mrisr"].encode()
        made = (reshaped if rng.random() < 0.7 else some_bytes)(held, rng)
        header["__metadata__"]["mrisr"] = made.decode("utf-8", "replace")
    else:
        header = reshape(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def read_weights(path: Path) -> None:
    from mrisr.infer.corrections import learnt
    from mrisr.weights import registry

    meta = registry.load(path).meta
    learnt(meta)
    for entry in meta.get("uncertainty", ()):
        [(float(level), float(factor)) for level, factor in entry["scale"].items()]


def read_config(path: Path) -> None:
    from mrisr.train.config import CONFIGS, load_config

    load_config(str(path), CONFIGS)


def read_distillation(path: Path) -> None:
    from mrisr.train.config import DISTILLATIONS, load_config

    load_config(str(path), DISTILLATIONS, steps=10)


def config(folder: Path) -> bytes:
    from mrisr.train.config import CONFIGS

    return CONFIGS["tiny"].to_json().encode()


def distillation(folder: Path) -> bytes:
    from mrisr.train.config import DISTILLATIONS

    return DISTILLATIONS["distill-tiny"].to_json().encode()


def bundle_config(path: Path) -> None:
    from mrisr import bundle

    bundle.check_config(path.read_bytes(), str(path))


def pack(folder: Path) -> bytes:
    from mrisr.data.pack import write_pack
    from mrisr.data.volumes import TrainingVolume

    volumes = [TrainingVolume.from_array(scan_data((9, 8, 7)), (1.0, 1.0, s), f"v{s}.nii[0]") for s in (1.0, 3.0)]
    write_pack(folder / "sound.pack", volumes, {"": "CC0"})
    return (folder / "sound.pack").read_bytes()


def read_pack(path: Path) -> None:
    from mrisr.data import pack

    pack.describe(path)
    for volume in pack.read_pack(path):
        assert volume.data.ndim == 3 and len(volume.centres)


def array_of_json(data: bytes, rng: random.Random) -> bytes:
    """The "about" of a pack, an array of bytes that are JSON."""
    about = np.load(io.BytesIO(data)).tobytes()
    made = io.BytesIO()
    np.save(made, np.frombuffer((reshaped if rng.random() < 0.7 else some_bytes)(about, rng), np.uint8))
    return made.getvalue()


@cache
def run_state() -> dict:
    """A checkpoint's content, of a run of `tiny` that has made one step."""
    import torch

    from mrisr.nn.presets import build
    from mrisr.train.checkpoint import FORMAT
    from mrisr.train.config import CONFIGS
    from mrisr.train.optim import build_optimizers

    torch.manual_seed(0)
    net = build("tiny")
    optimizers = build_optimizers(net, CONFIGS["tiny"])
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in optimizers:
        optimizer.step()
    state = {k: v.detach().clone() for k, v in net.state_dict().items()}
    return {"format": FORMAT, "config": CONFIGS["tiny"].to_json(), "step": 1, "chosen": "long", "sigma_data": 0.1,
            "table": {"": 0.01, "iso2": 0.02}, "trained_on": ["a", "b"], "net": state,
            "averages": {"long": dict(state), "short": dict(state)},
            "optimizers": [o.state_dict() for o in optimizers]}  # fmt: skip


def saved(state) -> bytes:
    import torch

    made = io.BytesIO()
    torch.save(state, made)
    return made.getvalue()


def state_reshaped(data: bytes, rng: random.Random) -> bytes:
    return saved(reshape(run_state(), rng))


def read_checkpoint(path: Path) -> None:
    """What resuming does, but for the scans."""
    from mrisr.nn.presets import build
    from mrisr.train import checkpoint
    from mrisr.train.config import CONFIGS
    from mrisr.train.optim import build_optimizers

    state = checkpoint.load(path)
    checkpoint.check_same_run(state, CONFIGS["tiny"].to_json(), path)
    checkpoint.check_same_scans(state, ["a", "b"], path)
    net = build("tiny")
    with checkpoint.fitting(path):
        net.load_state_dict(state["net"])
    averages = {name: build("tiny") for name in ("long", "short")}
    checkpoint.restore(state, path, averages, build_optimizers(net, CONFIGS["tiny"]))


def dicom_slice(folder: Path) -> bytes:
    """The last of four slices; the others are written beside it."""
    import pydicom

    made = b""
    for k in range(4):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = pydicom.uid.MRImageStorage, "1.2.840.10008.1.2.1"
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
        ds = pydicom.Dataset()
        ds.file_meta, ds.Modality = meta, "MR"
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.SeriesDescription, ds.InstanceNumber = "1.2.3", "T2w", k + 1
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 6, 5, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.RescaleSlope, ds.RescaleIntercept, ds.EchoTime = 2.0, -1.0, 90.0
        ds.PixelData = (50 * k + np.arange(30, dtype="<u2")).tobytes()
        ds.PixelSpacing, ds.ImageOrientationPatient = [0.9, 0.9], [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient, ds.SliceThickness, ds.SpacingBetweenSlices = [-3, -4, 5.0 * k], 4.0, 5.0
        ds.MagneticFieldStrength, ds.MRAcquisitionType, ds.AcquisitionMatrix = 1.5, "2D", [0, 6, 5, 0]
        ds.ImageType, ds.Manufacturer = ["ORIGINAL", "PRIMARY", "M", "ND"], "SIEMENS"
        held = io.BytesIO()
        ds.save_as(held, enforce_file_format=True)
        made = held.getvalue()
        if k < 3:
            (folder / f"IM{k}").write_bytes(made)
    return made


def read_dicom(path: Path) -> None:
    from mrisr.io.adapters import to_volume

    to_volume(path.parent)


def zipped(damage: Callable) -> Callable:
    """The damage done before compression; the stream itself is sound."""
    return lambda data, rng: gzip.compress(damage(gzip.decompress(data), rng), 1, mtime=0)


def gz(cls: str) -> Callable[[Path], bytes]:
    return lambda folder: gzip.compress(image_bytes(cls, scan_data()), 1, mtime=0)


_nifti1, _nifti2, _mgh = header_numbers(352), header_numbers(544), header_numbers(284, ">")
_field = np.stack([0.1 * scan_data(), 0.2 * scan_data(), -0.1 * scan_data()], -1)

TARGETS = {
    "nifti1": Target("scan.nii", lambda f: image_bytes("Nifti1Image", scan_data()), (_nifti1, within(352), some_bytes),
                     read_image),
    "nifti2": Target("scan.nii", lambda f: image_bytes("Nifti2Image", scan_data()), (_nifti2, within(544)), read_image),
    "nifti-4d": Target("scan.nii", lambda f: image_bytes("Nifti1Image", scan_data((6, 7, 5, 2))), (_nifti1,),
                       read_image),
    "nifti-gz": Target("scan.nii.gz", gz("Nifti1Image"), (zipped(_nifti1), some_bytes), read_image),
    "nifti-pair": Target("scan.hdr", hdr, (_nifti1, some_bytes), pair),
    "mgh": Target("scan.mgh", lambda f: image_bytes("mgh", scan_data()), (_mgh, within(284), some_bytes), read_image),
    "mgz": Target("scan.mgz", gz("mgh"), (zipped(_mgh), some_bytes), read_image),
    "sidecar": Target("scan.json", sidecar, (reshaped, some_bytes), read_sidecar),
    "bias": Target("bias.nii", lambda f: image_bytes("Nifti1Image", scan_data()), (_nifti1, some_bytes), read_bias),
    "displacement": Target("field.nii", lambda f: image_bytes("Nifti1Image", _field), (_nifti1, some_bytes),
                           read_displacement),
    "coil-grad": Target("coil.grad", lambda f: GRAD, (some_bytes,), read_coil),
    "coil-coef": Target("coil.coef", lambda f: COEF, (some_bytes,), read_coil),
    "weights": Target("w.safetensors", weights, (meta_reshaped, within(9000)), read_weights, 60),
    "bundle": Target("config.json", lambda f: (EXPORT / "config.json").read_bytes(), (reshaped, some_bytes),
                     bundle_config),
    "train-config": Target("run.json", config, (reshaped, some_bytes), read_config),
    "distill-config": Target("run.json", distillation, (reshaped, some_bytes), read_distillation),
    "pack": Target("scans.pack", pack, (zip_entries({"about": array_of_json, "": within(128)}, zipfile.ZIP_DEFLATED),
                                        some_bytes), read_pack),
    "checkpoint": Target("last.pt", lambda f: saved(run_state()),
                         (state_reshaped, zip_entries({"data.pkl": some_bytes, "": some_bytes}, zipfile.ZIP_STORED),
                          within(4000), some_bytes), read_checkpoint, 60),
    "dicom": Target("IM9", dicom_slice, (within(1600), some_bytes), read_dicom),
}  # fmt: skip
