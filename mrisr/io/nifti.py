"""NIfTI-1, NIfTI-2 and MGH files, single or .hdr/.img pairs, plain or gzipped <-> Volume.

Where a file has both an sform and a qform, the sform is used. Every failure is one line, an InputError or an
OutputError.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.freesurfer.mghformat import MGHError, MGHHeader, MGHImage
from nibabel.nifti1 import Nifti1Header, Nifti1Image, Nifti1Pair
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.spatialimages import HeaderDataError, SpatialImage

from mrisr.errors import GeometryError, InputError, MemoryBudgetError, MrisrWarning, OutputError
from mrisr.io import gzipped, sidecar, whole_numbers
from mrisr.io.atomic import check_target, replacing
from mrisr.io.framewise import FileFrames
from mrisr.io.headers import affine_in_mm, mgh_header, nifti_header, qform
from mrisr.volume import ACQUISITION_FACTS, Volume, check_dtype, check_shape

__all__ = [
    "check_output",
    "ending_of",
    "from_image",
    "read",
    "sidecar_facts",
    "sidecar_of",
    "to_image",
    "write",
    "write_start",
]

READ_ENDINGS = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz", ".mgh", ".mgz")
WRITE_ENDINGS = (".nii", ".nii.gz", ".mgh", ".mgz")
MGH_ENDINGS = (".mgh", ".mgz")
DTYPES = ("float32", "int16")  # that results are stored as
GZIP_MAGIC = b"\x1f\x8b"
MGH_VERSION = b"\0\0\0\1"
# TypeError: a header shorter than its format.
UNREADABLE = (ValueError, KeyError, TypeError, OverflowError, ImageFileError, HeaderDataError, MGHError)
# Quaternions are float32, which alone moves the corner of a head by some hundredths of a millimetre.
DIFFERENT_MM = 0.1


def read(
    path: str | os.PathLike, *, scan: bool = True, sidecars: Sequence[Path] | None = None, framewise: bool = False
) -> Volume:
    """The volume in a NIfTI or MGH file, scaled by the file's slope and intercept, float32.

    `.header` is the file's, `.name` the path as given, `.meta` what BIDS sidecars (`sidecar_facts`) state of
    ACQUISITION_FACTS. `scan=False` reads a field, which may be constant. `framewise` leaves the voxels of a 4D NIfTI
    file there, to be read a frame at a time (`mrisr.io.framewise`; `.data` is no array then).

    Raises InputError naming the file, what was found and what to do, GeometryError where the voxels have no usable
    place in space. Warns (MrisrWarning) where the header was repaired or disagrees with itself.
    """
    name, path = os.fspath(path), Path(path)
    length = _check_readable(path, name)
    with ExitStack() as files:
        return _read(path, name, length, scan, sidecars, framewise, files)


def _read(path: Path, name: str, length: int, scan: bool, sidecars, framewise: bool, files: ExitStack) -> Volume:
    """`read` of a file of `length` bytes, unzipped; what is opened is left to `files`."""
    with _reading(name):
        image = _unzipped(nib.load(path, mmap=False), files)
    if not isinstance(image, (Nifti1Pair, MGHImage)) or isinstance(image, nib.Cifti2Image):
        raise InputError(f"{name}: found {type(image).__name__}, expected NIfTI or MGH; convert it to NIfTI first")
    if isinstance(image, Nifti1Pair):
        _check_raw_voxel_size(image, name)
    _check_length(image, path, name, length)
    facts = sidecar_facts(path, sidecars)
    if framewise and isinstance(image, Nifti1Pair) and len(image.shape) == 4:
        return _framewise(image, name, facts)
    return from_image(image, name=name, meta=facts, scan=scan)


def _framewise(image: Nifti1Pair, name: str, facts: dict) -> Volume:
    """As `from_image`, of a series that stays in its file."""
    check_dtype(np.dtype(image.get_data_dtype()), name)
    check_shape(image.shape, name)
    frames = FileFrames(image.dataobj, Path(image.file_map["image"].filename), name)
    volume = Volume(frames, affine_in_mm(image.affine, image.header), image.header.copy(), name, facts)
    _warn_where_header_disagrees(volume)
    return volume


def _unzipped(image: SpatialImage, files: ExitStack) -> SpatialImage:
    """The same image, whose voxels come through `gzipped` where its file is zipped; nibabel's own way is zlib."""
    holder = image.file_map["image"]
    if not str(holder.filename).lower().endswith(gzipped.ENDINGS):
        return image
    stream = files.enter_context(gzipped.reading(holder.filename))
    return type(image).from_file_map({**image.file_map, "image": FileHolder(holder.filename, stream)}, mmap=False)


def from_image(image: SpatialImage, *, name: str | None = None, meta: dict | None = None, scan: bool = True) -> Volume:
    """The volume of any nibabel image with an affine; `name` is its file unless given. Raises as `read`."""
    name = name or image.get_filename() or "nibabel image"
    if image.affine is None:
        raise GeometryError(f"{name}: the image has no affine; give it one")
    check_dtype(np.dtype(image.get_data_dtype()), name)
    check_shape(image.shape, name)
    with _reading(name):
        proxy = image.dataobj
        voxels = proxy.get_scaled(np.float32) if hasattr(proxy, "get_scaled") else np.asarray(proxy)
    affine = affine_in_mm(image.affine, image.header)
    header = image.header.copy()
    if isinstance(image, MGHImage) and not _position_stated(image):
        header["goodRASFlag"] = 0  # nibabel has filled in FreeSurfer's default, and set the flag
        _warn(f"{name}: states no voxel size and no position (ras_good_flag 0): FreeSurfer's default, 1 mm, is assumed")
    volume = Volume(voxels, affine, header, name, meta or {}, from_outside=scan)
    if isinstance(volume.header, Nifti1Header):
        _warn_where_header_disagrees(volume)
    return volume


def to_image(volume: Volume, kind: str | None = None) -> SpatialImage:
    """A nibabel image of `volume`, float32, with the geometry rules of `mrisr.io.headers`.

    kind  "nifti" (NIfTI-2 where the source was), "mgh", or None: MGH where the source was, else NIfTI
    """
    if kind is None:
        kind = "mgh" if isinstance(volume.header, MGHHeader) else "nifti"
    if kind == "mgh":
        return MGHImage(volume.data, volume.affine, mgh_header(volume))
    return _image(volume.data, nifti_header(volume))


def _image(data: np.ndarray, header: Nifti1Header) -> Nifti1Image:
    cls = Nifti2Image if isinstance(header, Nifti2Header) else Nifti1Image
    return cls(data, header.get_best_affine(), header)


def check_output(path: str | os.PathLike, *, force: bool = False, dtype: str = "float32") -> str:
    """Whether `write` could write there: the ending it has. OutputError otherwise."""
    ending = ending_of(Path(path), WRITE_ENDINGS)
    if ending is None:
        raise OutputError(f"{path}: the output format is not known; end the name in {', '.join(WRITE_ENDINGS)}")
    if ending in MGH_ENDINGS and dtype != "float32":
        raise OutputError(f"{path}: MGH has no slope for {dtype} voxels; write float32, or NIfTI")
    check_target(path, force=force)
    return ending


def write(
    volume: Volume, path: str | os.PathLike, *, force: bool = False, dtype: str = "float32", descrip: str | None = None
) -> None:
    """Write `volume` in the format of the path's ending: .nii, .nii.gz, .mgh or .mgz.

    Args:
        dtype: of DTYPES; "int16" (NIfTI alone) stores 65536 steps from the lowest to the highest value, by slope and
            intercept: off by at most half a step, for half the bytes. A value that a background was filled with, 0
            first of all, stays exactly that; the steps are then as many on its longer side, 32767.
        descrip: NIfTI's text of at most 79 bytes on what the image is; None keeps the source's.

    The file appears whole or not at all. Raises OutputError for another ending, a type that the format has not, an
    existing file without `force`, and a directory that is missing or not writable.
    """
    ending = check_output(path, force=force, dtype=dtype)
    image = to_image(volume, "mgh" if ending in MGH_ENDINGS else "nifti")
    if ending not in MGH_ENDINGS:
        _describe(image.header, descrip)
        if dtype != "float32":
            image = whole_numbers.stored(image, volume.data, dtype, Path(path).name)
    with replacing(path, force=force) as beside:
        if not beside.name.lower().endswith(gzipped.ENDINGS):
            image.to_filename(beside)
            return
        with beside.open("wb") as file, gzipped.writing(file) as packed:
            image.to_stream(packed)


def write_start(stream: BinaryIO, frame: Volume, frames: int, descrip: str | None = None) -> None:
    """What `write` writes before the voxels of a 4D NIfTI file of so many frames like this one, float32."""
    shape = (*frame.data.shape, frames)
    image = _image(np.broadcast_to(np.float32(0), shape), nifti_header(frame, shape))
    _describe(image.header, descrip)
    image.update_header()
    image.header.set_slope_inter(1, 0)
    image.header.write_to(stream)
    stream.write(bytes(image.header.get_data_offset() - stream.tell()))


def _describe(header: Nifti1Header, descrip: str | None) -> None:
    if descrip is not None:
        header["descrip"] = descrip.encode("ascii", "replace")[:79]


def _position_stated(image: MGHImage) -> bool:
    """Whether the file's own ras_good_flag is set; True where there is no file."""
    holder = image.file_map["image"]
    if holder.filename is None or not Path(holder.filename).is_file():
        return True
    with _reading(holder.filename), holder.get_prepare_fileobj("rb") as stream:
        return stream.read(30)[28:] != b"\0\0"


def ending_of(path: Path, endings: tuple[str, ...] = WRITE_ENDINGS) -> str | None:
    """The longest of the file name `endings` that `path` has, or None."""
    return max((e for e in endings if path.name.lower().endswith(e)), key=len, default=None)


def _check_readable(path: Path, name: str) -> int:
    """What can be said before nibabel looks, in plainer words than it would. The file's length, unzipped.

    A gzip stream is read to its end, where its checksum is; nibabel stops at the last voxel before it.
    """
    try:
        if path.is_dir():
            raise InputError(f"{name}: is a directory; give a file (or, for DICOM, the folder of one series)")
        if not path.exists():
            raise InputError(f"{name}: no such file; check the path")
        if not path.is_file():
            raise InputError(f"{name}: is not a regular file; copy it to a file first")
        ending = ending_of(path, READ_ENDINGS)
        if ending is None:
            raise InputError(f"{name}: expected a file name in {', '.join(READ_ENDINGS)}")
        if (ending_as_it_is := path.name[-len(ending) :]) not in (ending, ending.upper()):
            raise InputError(f"{name}: ends in {ending_as_it_is}; rename it to end in {ending}")
        with path.open("rb") as stream:
            start = stream.read(348)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be opened ({reason}); check its name and permissions") from error
    if not start:
        raise InputError(f"{name}: the file is empty (0 bytes); copy or download it again")
    zipped = ending.endswith(gzipped.ENDINGS)
    if zipped and start[:2] != GZIP_MAGIC:
        raise InputError(f"{name}: is named {ending} but is not gzip-compressed; rename or compress it")
    if not zipped and start[:2] == GZIP_MAGIC:
        raise InputError(f"{name}: is gzip-compressed but named {ending}; rename it or decompress it")
    length = path.stat().st_size
    if zipped:
        with _reading(name), gzipped.reading(path) as stream:
            start = stream.read(348)
            length = len(start) + sum(map(len, iter(lambda: stream.read(gzipped.BLOCK), b"")))
    _check_signature(path, name, ending, start)
    return length


def _check_signature(path: Path, name: str, ending: str, start: bytes) -> None:
    """The magic of NIfTI, at byte 344 or (NIfTI-2) byte 4; the version of MGH; the other half of a pair."""
    if ending.startswith(".nii"):
        magic = start[4:8] if start[4:7] == b"n+2" else start[344:348]
        if magic[:3] not in (b"n+1", b"n+2"):
            raise InputError(f"{name}: not a NIfTI file: expected the magic b'n+1' or b'n+2', found {magic!r}")
    elif ending.startswith(".mg"):
        if start[:4] != MGH_VERSION:
            raise InputError(f"{name}: not an MGH file: expected the start {MGH_VERSION!r}, found {start[:4]!r}")
    else:
        other = ending.replace("hdr", "img") if "hdr" in ending else ending.replace("img", "hdr")
        partner = path.name[: -len(ending)] + (other if path.name.endswith(ending) else other.upper())
        if not path.with_name(partner).exists():
            alike = next((p.name for p in path.parent.iterdir() if p.name.lower() == partner.lower()), None)
            do = f"rename {alike} to that" if alike else "put both files into one folder"
            raise InputError(f"{name}: its other half {partner} is missing; {do}")


def _check_length(image: SpatialImage, path: Path, name: str, length: int) -> None:
    """Whether the file of `length` bytes (unzipped) holds all voxels that its header promises."""
    file = Path(image.file_map["image"].filename)
    if file.name != path.name:  # a pair, named by its header
        length = _check_readable(file, f"{name}: {file.name}")
    promised = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    if length < promised:
        raise InputError(
            f"{name}: truncated or damaged (its header promises {promised} bytes, it holds {length}); "
            "copy or download it again"
        )


def _check_raw_voxel_size(image: Nifti1Pair, name: str) -> None:
    """nibabel turns a voxel size of zero into 1 mm; look at what the file really says."""
    holder = image.file_map.get("header") or image.file_map["image"]
    with holder.get_prepare_fileobj("rb") as stream:
        pixdim = type(image.header).from_fileobj(stream, check=False)["pixdim"][1:4]
    if not np.isfinite(pixdim).all() or (pixdim == 0).any():
        sizes = " x ".join(f"{p:g}" for p in pixdim)
        raise GeometryError(f"{name}: voxel size (pixdim) is {sizes} mm; set the true one in the header")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what nibabel raises into one InputError line, and what it repairs into a MrisrWarning."""
    repairs = _Repairs()
    previous, imageglobals.logger = imageglobals.logger, repairs
    try:
        yield
    except MemoryError as error:
        raise MemoryBudgetError(f"{name}: does not fit in memory; use a machine with more, or crop it") from error
    except (*gzipped.damaged(), *UNREADABLE) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, gzipped.damaged()):
            raise InputError(f"{name}: truncated or damaged ({reason}); copy or download it again") from error
        raise InputError(f"{name}: unusable header ({reason}); convert it to NIfTI again") from error
    finally:
        imageglobals.logger = previous
    for message in dict.fromkeys(repairs.messages):  # a header may be read twice
        warnings.warn(f"{name}: header repaired: {message}", MrisrWarning, stacklevel=4)


class _Repairs:
    """Stands in for nibabel's logger, whose lines would go to the terminal."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def log(self, level: int, message: str, *args: object) -> None:
        if level >= 30:  # below are remarks on what is legal
            self.messages.append(message % args if args else message)


def _warn_where_header_disagrees(volume: Volume) -> None:
    header, name = volume.header, volume.name
    if not header["sform_code"]:
        return
    if header["qform_code"]:
        other = qform(header)
        if other is None:
            _warn(f"{name}: the qform's quaternion is not a rotation; the sform is used")
            return
        corners = np.array([[*c, 1] for c in product(*((-0.5, n - 0.5) for n in volume.data.shape[:3]))])
        apart = corners @ (volume.affine - affine_in_mm(other, header)).T
        farthest = np.linalg.norm(apart[:, :3], axis=1).max()
        if farthest > DIFFERENT_MM:
            _warn(f"{name}: sform and qform differ by {farthest:.4g} mm at the farthest corner; sform is used")
        return
    sizes, sform_sizes = header.get_zooms()[:3], np.linalg.norm(header.get_sform()[:3, :3], axis=0)
    if not np.allclose(sizes, sform_sizes, rtol=1e-3):
        both = [" x ".join(f"{s:.4g}" for s in three) for three in (sizes, sform_sizes)]
        _warn(f"{name}: voxel size is {both[0]} by pixdim and {both[1]} by the sform; the sform is used")


def _warn(message: str) -> None:
    warnings.warn(message, MrisrWarning, stacklevel=5)


def sidecar_facts(
    path: Path, sidecars: Sequence[Path] | None = None, kinds: dict[str, Any] = ACQUISITION_FACTS
) -> dict[str, Any]:
    """As `mrisr.io.sidecar.facts`, of the sidecars of the image `path`: those given; else the one beside it, if there
    is one."""
    if sidecars is None:
        beside = sidecar_of(path)
        sidecars = [beside] if beside.is_file() else []
    return sidecar.facts(sidecars, kinds)


def sidecar_of(path: Path) -> Path:
    """Where the sidecar of the image `path` would be: of the same name, beside it."""
    return path.with_name(path.name[: -len(ending_of(path, READ_ENDINGS) or "") or None] + ".json")
