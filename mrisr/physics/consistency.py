"""Correct a fine image so that its forward model reproduces the coarse scan, to within the noise and no further.

The minimum-norm correction x + H^T (H H^T + lambda I)^-1 (v - H x) in closed form: H is separable, so H H^T is a
Kronecker product of one small symmetric matrix per axis, each diagonalised once. lambda is the largest that brings
chi^2 per degree of freedom down to 1 (Morozov's discrepancy principle); a residual already below that is left alone,
for fitting closer would fit the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrisr import native
from mrisr.errors import UsageError
from mrisr.ops import arrays
from mrisr.ops.resample import apply_axes, transposed
from mrisr.physics.degrade import ForwardModel
from mrisr.physics.foreground import CERTAIN, certain

if TYPE_CHECKING:
    import torch

    Volume = torch.Tensor | np.ndarray

# Below this share of the intensity scale a residual is rounding, not signal: clean scans are fitted no closer.
NOISE_FLOOR = 1e-3
SMALLEST_EIGENVALUE = 1e-4
STRONGEST, BISECTIONS = 1e6, 24  # of the damping: in units of the largest eigenvalue; rounds that narrow it
NULL = 1e-13  # of the largest eigenvalue: what H removes. Dividing by the damping would amplify rounding there.


@dataclass(frozen=True)
class Consistency:
    """Outcome of a correction.

    Attributes:
        image: corrected fine image, like the input.
        chi2_before, chi2_after: mean squared residual in the foreground / noise_sigma^2.
        applied: False where the residual was within the noise already.
    """

    image: torch.Tensor
    chi2_before: float
    chi2_after: float
    applied: bool


def residual_chi2(x: Volume, lr: Volume, model: ForwardModel, noise_sigma: float) -> float:
    """chi^2 per degree of freedom of lr - H x over the foreground of `lr` (normalised intensities)."""
    return _residual(x, lr, model).chi2(max(noise_sigma, NOISE_FLOOR))


@dataclass(frozen=True)
class _Residual:
    """lr - H x in the foreground of `lr`, and 0 elsewhere; the sum of its squares, over so many voxels."""

    values: Volume
    squares: float
    voxels: int

    def chi2(self, sigma: float) -> float:
        return self.squares / self.voxels / sigma**2 if self.voxels else 0.0


def _residual(x: Volume, lr: Volume, model: ForwardModel) -> _Residual:
    image = model.forward(x)
    values, scan = (None, None) if image is x else map(arrays.in_memory, (image, lr))
    if values is None or scan is None:
        return _plain_residual(image, lr)
    planes, plane = scan.shape[0], scan[0].size
    sums = native.module().misfit(values.ctypes.data, scan.ctypes.data, CERTAIN, planes, plane, arrays.threads())
    return _Residual(image, *sums)  # whose memory `values` is


def _plain_residual(image: Volume, lr: Volume) -> _Residual:
    import torch

    image, lr = torch.as_tensor(image), torch.as_tensor(lr)
    mask = certain(lr)
    values = (lr - image).masked_fill_(~mask, 0)
    return _Residual(values, float(values.double().square().sum()), int(mask.sum()))


def correct(x: torch.Tensor, lr: torch.Tensor, model: ForwardModel, noise_sigma: float) -> Consistency:
    """Make `x` reproduce `lr` under `model`.

    Args:
        x: float [X, Y, Z], the fine image, normalised intensities.
        lr: float [x, y, z], the scan, in the same units.
        model: the acquisition; it must be the right one: a wrong one makes the image worse.
        noise_sigma: standard deviation of the noise of `lr`, same units, >= 0.
    """
    import torch

    if not (np.isfinite(noise_sigma) and noise_sigma >= 0):
        raise UsageError(f"correct: noise_sigma must be finite and >= 0, found {noise_sigma}")
    sigma = max(noise_sigma, NOISE_FLOOR)
    residual = _residual(x, lr, model)
    before = residual.chi2(sigma)
    if before <= 1.0:
        return Consistency(x, before, before, False)
    bases, spectrum = _eigen(model, lr)
    modes = apply_axes(residual.values, transposed(bases))
    damping = _discrepancy(modes.double().square(), spectrum.double(), sigma**2 * residual.voxels)
    fitted = torch.where(spectrum > NULL * spectrum.max(), modes / (spectrum + damping), 0.0)
    dual = apply_axes(fitted, bases)
    corrected = x + model.adjoint(dual)
    return Consistency(corrected, before, residual_chi2(corrected, lr, model, noise_sigma), True)


def _eigen(model: ForwardModel, like: torch.Tensor):
    """Eigenvectors of H H^T per axis (None: identity) and the eigenvalues of the product, [x, y, z]."""
    import torch

    bases, values = [], []
    for matrix, n in zip(model.matrices, model.lr_shape):
        if matrix is None:
            bases.append(None)
            values.append(np.ones(n))
            continue
        square = torch.as_tensor(np.ascontiguousarray(matrix))
        eigenvalues, vectors = torch.linalg.eigh(square @ square.T)
        bases.append(vectors.numpy())
        values.append(np.maximum(eigenvalues.numpy(), 0.0))
    spectrum = np.einsum("i,j,k->ijk", *values)
    return bases, torch.as_tensor(spectrum, dtype=like.dtype, device=like.device)


def _discrepancy(power: torch.Tensor, spectrum: torch.Tensor, target: float) -> float:
    """The largest lambda with sum(power (lambda / (spectrum + lambda))^2) <= target, by bisection in log lambda."""
    top = float(spectrum.max())
    low, high = np.log(SMALLEST_EIGENVALUE * top), np.log(STRONGEST * top)

    def misfit(log_lambda: float) -> float:
        damping = float(np.exp(log_lambda))
        return float((power * (damping / (spectrum + damping)) ** 2).sum())

    if misfit(low) > target:
        return float(np.exp(low))  # modes that H removes cannot be fitted: do what a stable solve can
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if misfit(middle) <= target else (low, middle)
    return float(np.exp(low))
