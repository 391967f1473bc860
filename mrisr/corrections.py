"""What a caller says of a scan's gradient nonlinearity, bias field and head, read and checked.

Shared by `mrisr.upscale`, `mrisr upscale` and `mrisr correct`, so that all three follow the same rules: coefficients of
another vendor are refused, what the scanner corrected itself is never corrected twice, and doubts are said.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from mrisr.errors import InputError, MrisrWarning, UsageError
from mrisr.infer.corrections import Corrections
from mrisr.volume import Volume

if TYPE_CHECKING:
    import torch

    from mrisr.physics import gradnl

DONE = ("auto", "none", "2D", "3D")
BIAS_OUT = ("corrected", "kept")


def corrections(
    scan: Volume,
    gradnl_from: Any = None,
    bias_from: Any = None,
    *,
    done: str = "auto",
    slice_axis: int = 2,
    radius: float | None = None,
    bias_out: str = "corrected",
) -> Corrections:
    """The arguments of `mrisr.upscale` about distortions -> a `mrisr.infer.corrections.Corrections`.

    Args:
        gradnl_from, bias_from: `gradnl` and `bias` of `mrisr.upscale`.
        done: what the scanner has corrected: "auto" (from its metadata), "none", "2D" or "3D".
        slice_axis: stored axis across slices, for "2D".
        radius: R0 of a .coef file, mm.
        bias_out: "corrected" or "kept".

    Raises:
        UsageError: a wrong argument. InputError: a file or field that cannot be used.
    """
    if bias_out not in BIAS_OUT:
        raise UsageError(f"bias_out: expected one of {', '.join(BIAS_OUT)}, found {bias_out!r}")
    if bias_out == "kept" and bias_from is None:
        raise UsageError("bias_out: 'kept' needs a bias field; give bias, or leave bias_out out")
    if done not in DONE:
        raise UsageError(f"gradnl_done: expected one of {', '.join(DONE)}, found {done!r}")
    if slice_axis not in (0, 1, 2):
        raise UsageError(f"slice_axis: expected 0, 1 or 2, found {slice_axis!r}")
    coil = None if gradnl_from is None else nonlinearity(scan, gradnl_from, radius, done, slice_axis)
    if bias_from is None:
        return Corrections(coil)
    field, name = read_field(bias_from, scan)
    return Corrections(coil, field, name, bias_out == "kept")


def nonlinearity(
    scan: Volume, source: Any, radius: float | None, scanner_correction: str, slice_axis: int, by: str = "the caller"
) -> gradnl.Nonlinearity:
    """The gradient nonlinearity of a scan: of what, what the scanner has corrected, and who says so. Warns as
    `already_corrected` does."""
    from mrisr.physics import gradnl

    distortion, name = read_distortion(source, radius, scan.meta)
    return gradnl.Nonlinearity(distortion, name, *already_corrected(scan, scanner_correction, by), slice_axis)


def read_distortion(source: Any, radius: float | None, meta: dict) -> tuple[gradnl.Distortion, str]:
    """(distortion, its name) from Siemens coefficients, or from a displacement field as an image, a Volume or a file.

    An object with `displacement_at` and `gradient_at` passes. Coefficients of another vendor than the scan's are
    refused.
    """
    from mrisr.physics import coils, gradnl

    if hasattr(source, "displacement_at") and hasattr(source, "gradient_at"):
        return source, getattr(source, "name", type(source).__name__)
    if isinstance(source, str) and source == "auto":
        raise UsageError(
            "gradnl: cannot be estimated from a scan; give the coefficients of its scanner, or a displacement field"
        )
    if isinstance(source, str | os.PathLike):
        from mrisr.io import nifti  # where there are files; arrays need no nibabel

        name = os.fspath(source)
        if name.lower().endswith(nifti.READ_ENDINGS):
            return gradnl.DisplacementField.from_volume(nifti.read(name, scan=False)), name
        coil = coils.read(name, radius=radius)
        gradnl.check_vendor(name, meta)
        return coil, name
    volume = _image(source)
    if volume is None:
        raise UsageError(
            "gradnl: expected a path (.grad, .coef or a displacement field), an image or Volume [X, Y, Z, 3] in mm, or "
            f"a coil, found {type(source).__name__}"
        )
    return gradnl.DisplacementField.from_volume(volume), volume.name


def read_field(source: Any, scan: Volume) -> tuple[torch.Tensor | str, str]:
    """(field float32 [X, Y, Z] on the scan's grid, or "auto"; where it is from) from a file, an image or an array."""
    if isinstance(source, str) and source == "auto":
        return "auto", "estimated by N4"
    import torch

    from mrisr.physics import bias

    data, name = _on_grid(source, scan, "bias field", "bias: expected 'auto', a path, an image or an array")
    field = torch.from_numpy(np.require(data, np.float32, ["C", "W"]))
    bias.check_field(field, scan.data.shape[:3], name)
    return field, f"from {name}" if name != "bias field" else "given"


def read_mask(source: Any, scan: Volume) -> np.ndarray:
    """The head, bool [X, Y, Z] on the scan's grid, from a file, an image or an array; above 0 is head."""
    data, name = _on_grid(source, scan, "mask", "mask: expected a path, an image or an array")
    if data.shape != scan.data.shape[:3]:
        raise InputError(f"{name}: expected a mask on the scan's grid {scan.data.shape[:3]}, found {data.shape}")
    head = np.asarray(data) > 0
    if head.all() or not head.any():
        raise InputError(f"{name}: every voxel is {'inside' if head.any() else 'outside'}; expected a mask of the head")
    return head


def _on_grid(source: Any, scan: Volume, name: str, expected: str) -> tuple[np.ndarray, str]:
    """([X, Y, Z] of numbers, what messages call it) from a file, an image (its grid is checked) or an array."""
    if isinstance(source, str | os.PathLike):
        from mrisr.io import nifti

        source, name = nifti.read(source, scan=False), os.fspath(source)
    volume = _image(source)
    if volume is not None:
        data = volume.data
        if data.ndim == 3:
            from mrisr.physics import bias

            bias.check_same_grid(volume.grid, scan.grid, name)
    elif isinstance(source, np.ndarray):
        data = source
    elif type(source).__module__.partition(".")[0] == "torch" and hasattr(source, "detach"):
        data = source.detach().cpu().numpy()
    else:
        raise UsageError(f"{expected}, found {type(source).__name__}")
    if data.ndim != 3 or data.dtype.kind not in "bfiu":
        raise InputError(f"{name}: expected a {name} [X, Y, Z], found {data.dtype} of shape {tuple(data.shape)}")
    return data, name


def already_corrected(scan: Volume, statement: str = "auto", by: str = "the caller") -> tuple[str, str]:
    """("none", "2D" or "3D": what the scanner has corrected; who says so), with the warnings that belong to it."""
    from mrisr.physics import gradnl

    correction, why = gradnl.scanner_correction(scan.meta)
    if statement != "auto":
        correction, why = statement, f"stated by {by}"
    if correction == "unknown":
        correction = "none"
        _warn(f"{scan.name}: {why}; it is corrected in full, as asked for (or state gradnl_done, --corrected)")
    if correction == "3D":
        _warn(f"{scan.name}: corrected by the scanner already ({why}); its geometry is left as it is")
    else:
        warn_unless_scanner_coordinates(scan)
    return correction, why


def warn_unless_scanner_coordinates(scan: Volume) -> None:
    """A MrisrWarning where the header says that the affine leads to a template, where no gradient coil is."""
    header = scan.header
    if header is None or "sform_code" not in header:
        return
    code = int(header["sform_code"]) or int(header["qform_code"])
    if code != 1:
        _warn(
            f"{scan.name}: its affine is not said to lead to scanner coordinates (code {code}, expected 1); gradient "
            "nonlinearity is right only if it does"
        )


def _image(source: Any) -> Volume | None:
    if isinstance(source, Volume):
        return source
    if hasattr(source, "dataobj") and hasattr(source, "affine"):
        from mrisr.io import nifti

        return nifti.from_image(source, scan=False)
    return None


def _warn(text: str) -> None:
    warnings.warn(text, MrisrWarning, stacklevel=3)
