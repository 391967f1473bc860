"""Volumes as scripts: a page that is opened from a folder may load a script beside it, and no other kind of file."""

from __future__ import annotations

import base64
import io

import numpy as np

from mrisr import preview
from mrisr.io import gzipped

__all__ = ["nifti_bytes", "scripts"]

MOST = 8_000_000  # voxels of a copy
COARSEST_MM = 1.0  # no copy is coarser, unless its output is
GLOBAL = "mrisrVolumes"


def scripts(pair) -> dict[str, str]:
    """The text of before.js and after.js for a `mrisr.report.views.Pair`: each puts base64 of .nii.gz into the page's
    table of volumes."""
    packed = {name: base64.b64encode(nifti_bytes(pair, name)).decode("ascii") for name in ("before", "after")}
    return {name: f'(window.{GLOBAL}=window.{GLOBAL}||{{}})["{name}"]="{text}";\n' for name, text in packed.items()}


def nifti_bytes(pair, name: str) -> bytes:
    """A copy of `pair.before` or `.after` in 256 grey levels, as the bytes of a .nii.gz."""
    import nibabel as nib

    shape, affine = _grid(pair)
    data = getattr(pair, name)
    if shape != data.shape:
        data = preview.interpolate(_smoothed(data, pair.affine, affine), pair.affine, shape, affine)
    low, high = pair.window
    grey = np.clip((data - low) / max(high - low, 1e-30), 0, 1) * 255
    image = nib.Nifti1Image(np.rint(grey).astype(np.uint8), affine)
    image.header.set_xyzt_units("mm")
    stream = io.BytesIO()
    with gzipped.writing(stream) as packing:
        packing.write(image.to_bytes())
    return stream.getvalue()


def _grid(pair) -> tuple[tuple[int, ...], np.ndarray]:
    """The grid of the copies: the output's, or one as coarse as it has to be to hold MOST voxels."""
    shape, spacing = np.array(pair.after.shape), np.array(pair.spacing)
    if shape.prod() <= MOST:
        return pair.after.shape, pair.affine
    even = float(np.prod(shape * spacing) / MOST) ** (1 / 3)
    finer = np.minimum(np.maximum(spacing, even), np.maximum(spacing, COARSEST_MM))
    fewer = np.maximum(1, np.floor(shape * spacing / finer)).astype(int)
    ratio = finer / spacing
    affine = pair.affine.copy()
    affine[:3, 3] += pair.affine[:3, :3] @ (((shape - 1) - (fewer - 1) * ratio) / 2)
    affine[:3, :3] = pair.affine[:3, :3] * ratio
    return tuple(int(n) for n in fewer), affine


def _smoothed(data: np.ndarray, affine: np.ndarray, coarser: np.ndarray) -> np.ndarray:
    """What a coarser grid can hold of `data`: else its rims would be stairs."""
    from scipy import ndimage

    ratio = np.linalg.norm(coarser[:3, :3], axis=0) / np.linalg.norm(affine[:3, :3], axis=0)
    return ndimage.gaussian_filter(data, 0.4 * np.sqrt(np.maximum(ratio**2 - 1, 0)), mode="nearest")
