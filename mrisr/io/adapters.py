"""Anything that holds a scan -> Volume, and back to the same kind of thing.

Only numpy is imported here. A torch tensor, SimpleITK or TorchIO image is known by the module its class comes
from, so its library is loaded already when this module first needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any
from warnings import warn

import numpy as np

from mrisr.errors import GeometryError, InputError, MrisrWarning, UsageError, opening
from mrisr.grid import check_affine, triple
from mrisr.io.kinds import refuse_labels
from mrisr.volume import Volume, check_shape

__all__ = ["to_volume"]

Restore = Callable[[Volume], Any]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse


def to_volume(
    source: Any,
    affine: np.ndarray | None = None,
    input_voxel_size: float | tuple[float, float, float] | None = None,
    series: int | str | None = None,
    group: int | str | None = None,
) -> tuple[Volume, Restore]:
    """The scan in `source`, and a function that turns a result `Volume` into the same kind of object.

    source            comes back as
    path              nibabel image (path of a NIfTI or MGH file, or of the folder of a DICOM series)
    nibabel image     nibabel image (MGH for MGH, NIfTI for all others)
    numpy array       numpy array, float32, [X, Y, Z] or [X, Y, Z, T]
    torch tensor      torch tensor, float32, on the same device
    SimpleITK.Image   SimpleITK.Image, with its metadata
    torchio image     the same class, frames as channels
    Volume            Volume

    `affine` (4, 4) or `input_voxel_size` (mm, one number or three) place an array or tensor in space; without
    either, 1 mm is assumed with a MrisrWarning. Everything else knows its own place: UsageError where an
    argument contradicts it, or where the two contradict each other. InputError where the scan cannot be used.
    """
    if not isinstance(source, (str, os.PathLike)) and (series is not None or group is not None):
        raise UsageError(f"series, group: choose within a DICOM source given as a path, not {type(source).__name__}")
    if isinstance(source, str) and not source.strip():
        raise UsageError("volume: the path is empty; expected the name of a file or folder")
    if isinstance(source, np.ndarray):
        name = f"array {source.shape}"
        return Volume(source, _place(name, affine, input_voxel_size), name=name), lambda result: result.data
    library = type(source).__module__.partition(".")[0]
    if library == "torch" and hasattr(source, "detach"):
        return _from_torch(source, affine, input_voxel_size)

    if isinstance(source, Volume):
        volume, restore = source, lambda result: result
    elif isinstance(source, (str, os.PathLike)):
        volume, restore = _from_path(source, series, group)
    elif library == "SimpleITK" and hasattr(source, "GetDirection"):
        volume, restore = _from_simpleitk(source)
    elif library == "torchio" and hasattr(source, "affine"):
        volume, restore = _from_torchio(source)
    elif hasattr(source, "dataobj") and hasattr(source, "affine"):
        from mrisr.io import nifti

        volume, restore = nifti.from_image(source), nifti.to_image
    else:
        raise UsageError(
            "volume: expected a path, nibabel image, numpy array, torch tensor, SimpleITK or torchio image "
            f"or mrisr.Volume, found {type(source).__module__}.{type(source).__qualname__}"
        )
    _check_agreement(volume, affine, input_voxel_size)
    return volume, restore


def _place(name: str, affine: np.ndarray | None, voxel_size: Any) -> np.ndarray:
    """The affine of an array from what the caller said about it."""
    if affine is None and voxel_size is None:
        warn(f"{name}: 1 mm voxels assumed; state affine= or input_voxel_size=", MrisrWarning, stacklevel=4)
        voxel_size = 1.0
    if affine is None:
        return np.diag([*triple(voxel_size, "input_voxel_size"), 1.0])
    result = check_affine(affine, f"{name}, affine")
    if voxel_size is not None:
        _check_sizes("affine", np.linalg.norm(result[:3, :3], axis=0), voxel_size)
    return result


def _check_agreement(volume: Volume, affine: np.ndarray | None, voxel_size: Any) -> None:
    if affine is not None and np.abs(check_affine(affine, "affine") - volume.affine).max() > 1e-3:
        raise UsageError(f"affine: {volume.name} has another affine of its own; leave it out, or pass the array")
    if voxel_size is not None:
        _check_sizes(volume.name, volume.voxel_size, voxel_size)


def _check_sizes(owner: str, own: Any, claim: Any) -> None:
    if not np.allclose(own, triple(claim, "input_voxel_size"), rtol=1e-3):
        sizes = " x ".join(f"{s:.4g}" for s in own)
        raise UsageError(f"input_voxel_size: {owner} says {sizes} mm, found {claim}; leave one of the two out")


def _from_path(path: str | os.PathLike, series: Any, group: Any) -> tuple[Volume, Restore]:
    from mrisr.io import nifti
    from mrisr.io.dicom.parts import is_dicom
    from mrisr.io.dicom.series import read

    with opening(path):
        of_dicom = is_dicom(path)
    if of_dicom:
        return read(path, series=series, group=group), nifti.to_image
    if series is not None or group is not None:
        raise UsageError(f"series, group: {os.fspath(path)} is no DICOM; leave them out, or give a DICOM source")
    return nifti.read(path), nifti.to_image


def _from_torch(tensor: Any, affine: np.ndarray | None, voxel_size: Any) -> tuple[Volume, Restore]:
    torch = sys.modules["torch"]
    name, device = f"tensor {tuple(tensor.shape)}", tensor.device
    host = tensor.detach().to("cpu")
    if host.dtype == torch.bfloat16:  # numpy has none
        host = host.float()
    volume = Volume(host.resolve_conj().resolve_neg().numpy(), _place(name, affine, voxel_size), name=name)
    return volume, lambda result: torch.from_numpy(result.data).to(device)


def _from_simpleitk(image: Any) -> tuple[Volume, Restore]:
    """SimpleITK counts LPS, lists arrays slowest axis first, and may be 4D with a 4 x 4 direction."""
    sitk = sys.modules["SimpleITK"]
    name = "SimpleITK image"
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{name}: {image.GetPixelIDTypeAsString()}; expected one number per voxel")
    check_shape(image.GetSize(), name)
    n = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(n, n)
    if n == 4 and not np.allclose([*direction[:3, 3], *direction[3, :3]], 0):
        raise GeometryError(f"{name}: its direction mixes time and space; expected a block of 3 x 3 for space")
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3] * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    volume = Volume(sitk.GetArrayFromImage(image).T, LPS_TO_RAS @ affine, name=name)

    def restore(result: Volume) -> Any:
        lps = LPS_TO_RAS @ result.affine
        spacing = np.array(result.voxel_size)
        back = sitk.GetImageFromArray(np.ascontiguousarray(result.data.T), isVector=False)
        axes = direction.copy()
        axes[:3, :3] = lps[:3, :3] / spacing
        back.SetSpacing([*spacing.tolist(), *image.GetSpacing()[3:]])
        back.SetOrigin([*lps[:3, 3].tolist(), *image.GetOrigin()[3:]])
        back.SetDirection(axes.ravel().tolist())
        for key in image.GetMetaDataKeys():
            back.SetMetaData(key, image.GetMetaData(key))
        return back

    return volume, restore


def _from_torchio(image: Any) -> tuple[Volume, Restore]:
    """TorchIO keeps [C, X, Y, Z] and an RAS affine; its channels are frames here."""
    torch = sys.modules["torch"]
    if any(c.__name__ == "LabelMap" for c in type(image).__mro__):
        refuse_labels("torchio image", "a torchio.LabelMap")
    data = image.data.detach().to("cpu").numpy()
    frames = np.moveaxis(data, 0, -1)
    volume = Volume(frames[..., 0] if len(data) == 1 else frames, image.affine, name="torchio image")

    def restore(result: Volume) -> Any:
        channels = result.data[None] if result.data.ndim == 3 else np.moveaxis(result.data, -1, 0)
        return type(image)(tensor=torch.from_numpy(np.ascontiguousarray(channels)), affine=result.affine)

    return volume, restore
