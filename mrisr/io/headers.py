"""Headers of results: the source's header, moved to the target grid.

A NIfTI file may place its voxels twice, by sform and by qform. Both are carried over, each by itself: with
the voxel-space map M = inv(A_old) A_new of the affine that was used for processing, sform becomes sform @ M
and qform becomes qform @ M. What is true of the voxels no longer (data type, scaling, display range, slice
timing) is reset; everything else stays as it was.
"""

from __future__ import annotations

import warnings

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from mrisr.errors import MrisrWarning, OutputError, because
from mrisr.volume import Volume

__all__ = ["affine_in_mm", "mgh_header", "nifti_header", "places", "qform"]

SCANNER, ALIGNED = 1, 2  # NIfTI codes of an sform or qform
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units & 7: metre, millimetre, micrometre
MS_PER_UNIT = {8: 1000.0, 16: 1.0, 24: 0.001}  # xyzt_units & 56: second, millisecond, microsecond
SHEAR = 1e-5  # the largest entry by which float32 axes of unit length miss being orthogonal


def affine_in_mm(affine: np.ndarray, header: object) -> np.ndarray:
    """`affine` (4, 4) in the spatial unit of `header` -> float64 in mm. An unstated unit is mm."""
    return np.diag([_mm(header)] * 3 + [1.0]) @ affine


def places(header: object) -> bool:
    """Whether a header says where its voxels lie; without, nibabel puts the middle of them at the origin."""
    if isinstance(header, MGHHeader):
        return bool(header["goodRASFlag"])
    return not isinstance(header, Nifti1Header) or bool(header["sform_code"] or header["qform_code"])


def qform(header: Nifti1Header) -> np.ndarray | None:
    """The qform (4, 4) whatever its code, in header units; None where its quaternion is no rotation."""
    try:
        return header.get_qform()
    except ValueError:
        return None


def nifti_header(volume: Volume, shape: tuple[int, ...] | None = None) -> Nifti1Header:
    """A single-file NIfTI header (NIfTI-2 where the source was) for float32 `volume`, or for voxels of `shape` there.

    From a NIfTI source: copied, both codes kept. From MGZ: sform and qform with code 1 (scanner). From
    anything else: code 2 (aligned). A qform that cannot hold a shear gets code 0, with a MrisrWarning.
    Raises OutputError when the shape does not fit the format.
    """
    shape = volume.data.shape if shape is None else shape
    if isinstance(volume.header, Nifti1Header):
        header = _as_single_file(volume.header)
        _move(header, volume)
    else:
        header = Nifti1Header()
        mgh = isinstance(volume.header, MGHHeader)
        # Without the flag a position was never stored: what nibabel gives is FreeSurfer's default, not the scanner's.
        scanner = places(volume.header) if mgh else "ImageType" in volume.meta
        code = SCANNER if scanner else ALIGNED
        header.set_xyzt_units("mm", "msec" if mgh else 0)
        header.set_sform(volume.affine, code)
        _set_qform(header, volume.affine, code, volume.name)
    try:
        pixdim = header["pixdim"].copy()
        header.set_data_shape(shape)  # would reset the spacing of axes not in use
        header["pixdim"] = pixdim
    except HeaderDataError as error:
        raise OutputError(f"{volume.name}: shape {shape} does not fit NIfTI-1 ({because(error)})") from error
    if isinstance(volume.header, MGHHeader) and len(shape) == 4:
        header["pixdim"][4] = volume.header["tr"]
    header.set_data_dtype(np.float32)
    header["scl_slope"], header["scl_inter"] = 1, 0
    for stale in ("slice_start", "slice_end", "slice_code", "slice_duration", "cal_min", "cal_max"):
        header[stale] = 0
    header["vox_offset"] = 0  # nibabel works it out from the extensions
    return header


def mgh_header(volume: Volume) -> MGHHeader:
    """An MGH header for float32 `volume`, with the repetition time of NIfTI; nibabel fills in the affine.

    MrisrWarning where the source never stated its position: a finer grid cannot be written without one.
    """
    source = volume.header
    if isinstance(source, MGHHeader) and not source["goodRASFlag"]:
        warnings.warn(
            f"{volume.name}: its position, which was never stated (ras_good_flag 0), is written as if it had been, for "
            "which MGH has no other way; write NIfTI, which says so (code 2)",
            MrisrWarning,
            stacklevel=3,
        )
    header = source.copy() if isinstance(source, MGHHeader) else MGHHeader()
    header.set_data_dtype(np.float32)
    if isinstance(source, Nifti1Header) and volume.data.ndim == 4:
        header["tr"] = float(source["pixdim"][4]) * MS_PER_UNIT.get(int(source["xyzt_units"]) & 56, 0.0)
    return header


def _mm(header: object) -> float:
    return MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0) if isinstance(header, Nifti1Header) else 1.0


def _as_single_file(source: Nifti1Header) -> Nifti1Header:
    """A little-endian copy, extensions included, that may be written as one .nii file."""
    swapped = source.as_byteswapped("<")
    cls = Nifti2Header if isinstance(source, Nifti2Header) else Nifti1Header
    header = cls(swapped.binaryblock, endianness="<", check=False)
    header["magic"] = header.single_magic
    header.extensions = type(source.extensions)(source.extensions)  # byte swapping would lose them
    return header


def _move(header: Nifti1Header, volume: Volume) -> None:
    """Apply the voxel-space map to the grid of `volume` to sform and qform, each by itself."""
    index_map = np.linalg.inv(affine_in_mm(header.get_best_affine(), header)) @ volume.affine
    if np.allclose(index_map, np.eye(4), atol=1e-6):
        return
    sform = header.get_sform() @ index_map
    header["srow_x"], header["srow_y"], header["srow_z"] = sform[:3]

    code, old = int(header["qform_code"]), qform(header)
    if not code:
        header["pixdim"][1:4] = np.array(volume.voxel_size) / _mm(header)
    elif old is None:
        _drop_qform(header, volume.name, "its quaternion is not a rotation")
        header["pixdim"][1:4] = np.array(volume.voxel_size) / _mm(header)
    elif np.allclose(index_map[:3, :3], np.diag(np.diag(index_map)[:3]), atol=1e-5):
        # The axes stay: leave the quaternion's bits alone; a round trip through a matrix would change them.
        header["pixdim"][1:4] *= np.diag(index_map)[:3]
        header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = (old @ index_map)[:3, 3]
    else:
        _set_qform(header, old @ index_map, code, volume.name)


def _set_qform(header: Nifti1Header, affine: np.ndarray, code: int, name: str) -> None:
    header.set_qform(affine, code)  # silently takes the nearest rotation
    axes, axes_held = (a[:3, :3] / np.linalg.norm(a[:3, :3], axis=0) for a in (affine, header.get_qform()))
    if np.abs(axes - axes_held).max() > SHEAR:
        _drop_qform(header, name, "the affine has shear, which a qform cannot hold")


def _drop_qform(header: Nifti1Header, name: str, why: str) -> None:
    header["qform_code"] = 0
    warnings.warn(f"{name}: qform written with code 0: {why}; the sform is exact", MrisrWarning, stacklevel=2)
