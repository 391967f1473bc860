"""Gradient nonlinearity: where a scanner put what it saw, simulated and undone.

A point at r (mm, RAS, scanner coordinates) appears in the image at r + d(r). So a corrected image reads the distorted
one at r + d(r), times |det(I + grad d)|, for the signal of a stretched volume was spread thin; a simulated distortion
reads the undistorted image at the inverse of that mapping and divides. Either is one `Warp`: displacement, change of
grid and intensity in a single interpolation.

Sources: Jovicich et al., NeuroImage 30, 2006; Glasser et al., NeuroImage 80, 2013 (one interpolation, intensity).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch

from mrisr.errors import InputError, MrisrWarning, UsageError, excerpt
from mrisr.grid import Grid
from mrisr.ops.resample import resample3d
from mrisr.physics import smooth
from mrisr.volume import Volume

LARGEST = 50.0  # mm; real coils stay below 15 within the head
STEPS, SETTLED = 40, 1e-6  # of Newton's iteration; mm
FRESH = 3  # steps with one and the same slope: it changes little and costs most
GOOD = 1e-4  # mm, and as a fraction of the intensity: what an inverse is good to


class Distortion(Protocol):
    """A mapping r -> r + d(r). `degree`: of d where it is a polynomial, else None."""

    degree: int | None

    def displacement_at(self, points: torch.Tensor) -> torch.Tensor:
        """points [3, P] (RAS, mm) -> d [3, P] (RAS, mm), dtype and device of `points`."""

    def gradient_at(self, points: torch.Tensor) -> torch.Tensor:
        """points [3, P] (RAS, mm) -> d displacement_a / d position_b [3, 3, P], no unit."""


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A displacement stored as an image, cubic B-splines between its voxels, its gradient taken at its own spacing.

    Attributes:
        data: float64 [3, X, Y, Z], mm along R, A and S.
        grid: where its voxels lie.
    """

    data: torch.Tensor
    grid: Grid
    name: str = "displacement field"
    degree: int | None = field(default=None, init=False)

    @classmethod
    def from_volume(cls, volume: Volume) -> DisplacementField:
        """From a volume [X, Y, Z, 3], as `mrisr correct --displacement` writes it: mm along R, A and S."""
        if volume.data.ndim != 4 or volume.data.shape[3] != 3:
            raise InputError(
                f"{volume.name}: expected a displacement field [X, Y, Z, 3] in mm, found shape {volume.data.shape}"
            )
        data = torch.from_numpy(np.ascontiguousarray(np.moveaxis(volume.data, 3, 0))).double()
        return cls(data, volume.grid, volume.name)

    def displacement_at(self, points: torch.Tensor) -> torch.Tensor:
        """See `Distortion`."""
        return self._sample(self.data, points)

    def gradient_at(self, points: torch.Tensor) -> torch.Tensor:
        """See `Distortion`."""
        return self._sample(self._gradient, points).unflatten(0, (3, 3))

    @cached_property
    def _gradient(self) -> torch.Tensor:
        """d displacement_a / d position_b at the field's own voxels: [3 * 3, X, Y, Z]."""
        along_axes = torch.stack(torch.gradient(self.data, dim=(1, 2, 3)))  # [index axis, component, X, Y, Z]
        to_mm = torch.from_numpy(np.linalg.inv(self.grid.affine[:3, :3]))
        return torch.einsum("icxyz,ib->cbxyz", along_axes, to_mm).flatten(0, 1)

    def covers(self, grid: Grid) -> bool:
        """Whether every voxel of `grid` lies within a voxel of the field's own."""
        corners = smooth.world(grid.affine, [(0, n - 1) for n in grid.shape])
        index = self._index(corners)
        last = torch.tensor(self.grid.shape, dtype=index.dtype)[:, None] - 1
        return bool(((index > -1.01) & (index < last + 1.01)).all())

    def _index(self, points):
        inverse = torch.from_numpy(np.linalg.inv(self.grid.affine)).to(points)
        return inverse[:3, :3] @ points + inverse[:3, 3:]

    def _sample(self, data, points):
        index = self._index(points).reshape(3, -1, 1, 1)
        return resample3d(
            data.to(points), (index.shape[1], 1, 1), np.zeros((3, 4)), displacement=index, order=3
        ).reshape(len(data), -1)


@dataclass(frozen=True, eq=False)
class Warp:
    """A linear map of images: one interpolation at displaced positions, times a gain.

    Attributes:
        source, target: the grids of what goes in and what comes out.
        offset: [3, X', Y', Z'] mm (RAS), from a target voxel to where it is read; or one for each of N images.
        gain: [X', Y', Z'], factor on the intensity, above zero; or [N, X', Y', Z'].
        order: of the B-spline.
    """

    source: Grid
    target: Grid
    offset: torch.Tensor
    gain: torch.Tensor
    order: int = 5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., X, Y, Z] on the source grid -> [..., X', Y', Z']. Differentiable in x, offset and gain."""
        if tuple(x.shape[-3:]) != self.source.shape:
            raise UsageError(f"Warp.forward: expected [..., {self.source.shape}], found x.shape={tuple(x.shape)}")
        matrix = np.linalg.inv(self.source.affine) @ self.target.affine
        how = dict(displacement=self.voxels(), modulate=self.gain.to(x.dtype), order=self.order)
        return resample3d(x, self.target.shape, matrix, **how)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """y: [..., X', Y', Z'] -> [..., X, Y, Z], <forward(x), y> = <x, adjoint(y)>."""
        if tuple(y.shape[-3:]) != self.target.shape:
            raise UsageError(f"Warp.adjoint: expected [..., {self.target.shape}], found y.shape={tuple(y.shape)}")
        x = y.new_zeros(*y.shape[:-3], *self.source.shape, requires_grad=True)
        with torch.enable_grad():
            return torch.autograd.grad(self.forward(x), x, y)[0]

    def voxels(self) -> torch.Tensor:
        """`offset` in source voxels along the source's axes."""
        inverse = torch.from_numpy(np.linalg.inv(self.source.affine[:3, :3])).to(self.offset)
        return torch.einsum("ab,...bxyz->...axyz", inverse, self.offset)

    @classmethod
    def stacked(cls, warps: list[Warp]) -> Warp:
        """One warp for a batch x [N, C, X, Y, Z], an entry for each; their grids have one shape and spacing."""
        first = warps[0]
        for other in warps[1:]:
            grids = ((first.source, other.source), (first.target, other.target))
            same = all(a.shape == b.shape and np.allclose(a.affine[:3, :3], b.affine[:3, :3]) for a, b in grids)
            if not same or first.order != other.order:
                raise UsageError("Warp.stacked: expected grids of one shape and spacing and one spline order")
        offset = torch.stack([w.offset for w in warps])
        return cls(first.source, first.target, offset, torch.stack([w.gain for w in warps]), first.order)


@dataclass(frozen=True, eq=False)
class Nonlinearity:
    """The gradient nonlinearity of one scan, and how much of it is still to be corrected.

    Attributes:
        distortion: of the scanner.
        source: what messages call it.
        done, why: what the scanner has corrected already ("none", "2D" or "3D"), and who says so.
        slice_axis: stored axis across slices, for "2D".
    """

    distortion: Distortion
    source: str
    done: str = "none"
    why: str = ""
    slice_axis: int = 2

    @property
    def displaces(self) -> bool:
        """Whether anything is left to be moved."""
        return self.done != "3D"

    def warp(self, source: Grid, target: Grid | None = None, *, device="cpu") -> Warp:
        """What undoes the rest of it in a scan on `source`: `correction`."""
        return correction(self.distortion, source, target, done=self.done, slice_axis=self.slice_axis, device=device)


def correction(
    distortion: Distortion,
    source: Grid,
    target: Grid | None = None,
    *,
    done: str = "none",
    slice_axis: int = 2,
    intensity: bool = True,
    order: int = 5,
    device="cpu",
    dtype=torch.float32,
) -> Warp:
    """The warp that undoes `distortion` in a scan on `source`, and brings it to `target` in the same interpolation.

    Args:
        target: default the source's own grid.
        done: what the scanner corrected already: "none"; "2D" (within slices, intensity included), which leaves what
            happens across them; "3D", after which nothing is left and only the change of grid happens.
        slice_axis: stored axis across slices, for "2D".
        intensity: multiply by |det| of the mapping that is applied.
        order: of the B-spline, 1, 3 or 5.

    Raises:
        InputError: a displacement above 50 mm, or a displacement field that does not cover the target.
    """
    target = source if target is None else target
    how = dict(device=device, dtype=dtype)
    if done not in ("none", "2D", "3D"):
        raise UsageError(f"correction: done must be 'none', '2D' or '3D', found {done!r}")
    if done == "3D":
        return Warp(source, target, torch.zeros(3, *target.shape, **how), torch.ones(target.shape, **how), order)
    _check_covers(distortion, target)
    if done == "2D":
        axis = torch.from_numpy(np.linalg.inv(source.affine[:3, :3])[slice_axis])
        values = _mapped(partial(_across_slices, distortion, axis / axis.norm()), distortion, target, **how)
        offset, gain = values[:3], values[3]
    elif distortion.degree is None:
        values = _mapped(partial(_forward, distortion), distortion, target, **how)
        offset, gain = values[:3], values[3]
    else:
        offset = smooth.polynomial(distortion.displacement_at, target, distortion.degree, **how)
        top = 3 * max(0, distortion.degree - 1)
        gain = smooth.polynomial(partial(_determinant, distortion), target, top, **how)[0]
    _check_size(offset, target, distortion)
    if gain.numel() and float(gain.min()) <= 0:
        where = _place(target, gain.flatten().argmin())
        warnings.warn(
            f"{_name(distortion)}: the mapping folds over at {where} mm; what lies there cannot be recovered",
            MrisrWarning,
            stacklevel=2,
        )
    return Warp(source, target, offset, gain.abs() if intensity else torch.ones_like(gain), order)


def simulation(
    distortion: Distortion,
    source: Grid,
    target: Grid | None = None,
    *,
    intensity: bool = True,
    order: int = 5,
    device="cpu",
    dtype=torch.float32,
) -> Warp:
    """The warp from an undistorted image on `source` to what a scanner with `distortion` would show on `target`.

    The inverse of r -> r + d(r) is found by Newton's iteration, good to 1e-4 mm. Arguments and errors as for
    `correction`; InputError, too, where the mapping has no inverse within the target.
    """
    target = source if target is None else target
    _check_covers(distortion, target)
    how = dict(device=device, dtype=dtype)
    forward = (
        smooth.polynomial(distortion.displacement_at, target, distortion.degree, **how)
        if distortion.degree is not None
        else distortion.displacement_at(_corners(target))
    )
    _check_size(forward, target if forward.ndim == 4 else None, distortion)
    values = _mapped(partial(_inverse, distortion), distortion, target, **how)
    gain = 1.0 / values[3].abs() if intensity else torch.ones_like(values[3])
    return Warp(source, target, values[:3], gain, order)


def guidance(distortion: Distortion, target: Grid, *, device="cpu", dtype=torch.float32) -> torch.Tensor:
    """What a network is told of a distortion: [4, X, Y, Z], displacement in target voxels (3) and log|det| (1)."""
    warp = correction(distortion, target, device=device, dtype=dtype)
    return torch.cat([warp.voxels(), warp.gain.clamp_min(1e-3).log()[None]])


def scanner_correction(meta: dict | None) -> tuple[str, str]:
    """What the scanner has corrected already, from the metadata of a scan: (state, the reason in words).

    state is "none", "2D" or "3D" (arguments of `correction`), or "unknown". DICOM's ImageType (sidecars copy it)
    holds DIS3D, DIS2D or ND on Siemens scanners; BIDS has NonlinearGradientCorrection.
    """
    meta = meta or {}
    words = meta.get("ImageType") or []
    words = {str(w).upper() for w in (words.split("\\") if isinstance(words, str) else words)}
    for word, state in (("DIS3D", "3D"), ("DIS2D", "2D"), ("ND", "none")):
        if word in words:
            return state, f"ImageType holds {word}"
    flag = meta.get("NonlinearGradientCorrection")
    if isinstance(flag, bool):
        return ("3D" if flag else "none"), f"NonlinearGradientCorrection is {str(flag).lower()}"
    if words and "SIEMENS" in str(meta.get("Manufacturer", "Siemens")).upper():
        return "none", "ImageType holds neither DIS2D nor DIS3D"
    return "unknown", "nothing says whether the scanner corrected it"


def check_vendor(name: str, meta: dict | None) -> None:
    """InputError where a scan's metadata name another manufacturer than that of Siemens coefficients `name`."""
    maker = str((meta or {}).get("Manufacturer", "")).strip()
    if maker and "SIEMENS" not in maker.upper():
        raise InputError(
            f"{name}: coefficients of a Siemens coil, but the scan is from {excerpt(maker)}; give those of its own "
            "scanner as a displacement field"
        )


def _forward(distortion: Distortion, points: torch.Tensor) -> torch.Tensor:
    """[d, det] [4, P]"""
    return torch.cat([distortion.displacement_at(points), _determinant(distortion, points)])


def _inverse(distortion: Distortion, points: torch.Tensor) -> torch.Tensor:
    """u with  points + u + d(points + u) = points,  and det(I + grad d) there: [4, P]."""
    u = _solved(distortion, points, torch.eye(3), torch.zeros_like(points))
    return torch.cat([u, _determinant(distortion, points + u)])


def _across_slices(distortion: Distortion, normal: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Where a scan corrected within its slices holds what lies at `points`, and its gain: [4, P].

    The scanner put I'(q + P d(q)) at q, P the projection on a slice. So r is found at the q with
    q + P d(q) = r + d(r).
    """
    project = torch.eye(3, dtype=points.dtype) - torch.outer(normal, normal).to(points)
    e = _solved(distortion, points, project, distortion.displacement_at(points))
    within = torch.einsum("ab,bcp->acp", project, distortion.gradient_at(points + e))
    return torch.cat([e, _determinant(distortion, points) / determinant(within)])


def _solved(distortion: Distortion, points, project: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """e [3, P] with  e + project d(points + e) = target,  by Newton's iteration."""
    e, project = target, project.to(points)
    eye = torch.eye(3, dtype=points.dtype, device=points.device)
    for iteration in range(STEPS):
        residual = e + project @ distortion.displacement_at(points + e) - target
        if iteration % FRESH == 0:
            slope = eye[..., None] + torch.einsum("ab,bcp->acp", project, distortion.gradient_at(points + e))
        step = torch.linalg.solve_ex(slope.permute(2, 0, 1), residual.T[..., None])[0][..., 0].T
        e, size = e - step, float(step.abs().max()) if step.numel() else 0.0
        if size < SETTLED:
            # Far from where it began, or where the mapping is reversed: another branch of a mapping that folds over.
            far = e.numel() and float((e - target).norm(dim=0).max()) > LARGEST
            if far or float(determinant(slope - eye[..., None]).min()) <= 0:
                break
            return e
        if not size < 100 * LARGEST:
            break
    raise InputError(
        f"{_name(distortion)}: the mapping has no inverse in this field of view: it folds over; check that the "
        "coefficients belong to the scanner and that the affine leads to scanner coordinates, or crop the scan"
    )


def _determinant(distortion: Distortion, points: torch.Tensor) -> torch.Tensor:
    """det(I + grad d) [1, P]"""
    return determinant(distortion.gradient_at(points))


def determinant(gradient: torch.Tensor) -> torch.Tensor:
    """det(I + gradient), [3, 3, P] -> [1, P]"""
    (a, b, c), (d, e, f), (g, h, i) = gradient + torch.eye(3, dtype=gradient.dtype, device=gradient.device)[..., None]
    return (a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))[None]


def _mapped(function, distortion: Distortion, grid: Grid, **how) -> torch.Tensor:
    """[offset, det] at every voxel: through Chebyshev points where d is a polynomial, else one by one."""
    if distortion.degree is None:
        return smooth.voxelwise(function, grid, **how)
    return smooth.converged(function, grid, GOOD, 2 * distortion.degree + 5, **how)


def _corners(grid: Grid) -> torch.Tensor:
    return smooth.world(grid.affine, [np.unique(np.linspace(0, n - 1, 9)) for n in grid.shape])


def _check_covers(distortion: Distortion, target: Grid) -> None:
    covers = getattr(distortion, "covers", None)
    if covers is not None and not covers(target):
        raise InputError(
            f"{_name(distortion)}: does not cover the field of view of the scan; grids must match to within a voxel"
        )


def _check_size(offset: torch.Tensor, grid: Grid | None, distortion: Distortion) -> None:
    size = offset.square().sum(0).sqrt()
    if not size.numel():
        return
    largest = float(size.max())
    if not largest <= LARGEST:
        where = f" at {_place(grid, size.flatten().argmax())} mm" if grid is not None else ""
        raise InputError(
            f"{_name(distortion)}: displaces by {largest:.3g} mm{where}; expected at most {LARGEST:g} mm: check that "
            "the coefficients belong to the scanner and that the affine leads to scanner coordinates"
        )


def _place(grid: Grid, flat: torch.Tensor) -> str:
    index = np.unravel_index(int(flat), grid.shape)
    return "(" + ", ".join(f"{v:.0f}" for v in grid.affine[:3, :3] @ index + grid.affine[:3, 3]) + ")"


def _name(distortion: Distortion) -> str:
    return getattr(distortion, "name", type(distortion).__name__)
