"""resample3d in plain PyTorch: B-spline weights, where a position lies, and the spline with its two derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True)
class Sampling:
    """matrix: 3 x 4, row by row, target index -> source index. source, target: voxels, the halo not counted."""

    matrix: tuple[float, ...]
    source: tuple[int, ...]
    target: tuple[int, ...]
    order: int
    boundary: str

    @property
    def padded(self) -> tuple[int, ...]:
        return tuple(n + self.order + 1 for n in self.source)


def spline_weights(t: torch.Tensor, order: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The order + 1 B-splines that are not zero at a fraction `t` of the way between two knots, and their derivatives.

    de Boor's recurrence on whole-number knots; the derivative is the difference of two neighbours one order lower.
    """
    b = [torch.ones_like(t)]
    lower = b
    for d in range(1, order + 1):
        lower, b = b, [torch.zeros_like(t) for _ in range(d + 1)]
        for r, value in enumerate(lower):
            b[r] = b[r] + (r + 1 - t) * (value / d)
            b[r + 1] = (t + (d - 1 - r)) * (value / d)
    ends = [-lower[0], *(p - q for p, q in zip(lower, lower[1:])), lower[-1]]
    return b, ends


def locate(position: torch.Tensor, n: int, boundary: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(first tap, halo counted in; fraction; d(held or reflected position) / d(position)) along an axis of n voxels.

    position: float64, voxels of the volume; NaN gives tap 1 and fraction and slope NaN.
    """
    slope = torch.where(position.isnan(), position, 1.0).detach()
    if boundary == "linear":
        inside = position.clamp(-0.5, n - 0.5)
        slope = torch.where((inside != position) & ~position.isnan(), 0.0, slope)
    else:
        period = max(1, 2 * (n - 1))
        inside = position - period * (position / period).floor().detach()
        beyond = inside > n - 1
        inside = torch.where(beyond, period - inside, inside).clamp(0, n - 1)
        slope = slope * torch.where(beyond, -1.0, 1.0) if n > 1 else slope * 0.0
    below = inside.detach().floor()
    return below.nan_to_num(0.0).long() + 1, inside - below, slope


class Reference:
    """Plain PyTorch on any device, float32 or float64; positions in float64. One pass per tap, in a fixed order."""

    def _taps(self, displacement, s: Sampling, dtype, device):
        """Per axis: first tap, weights and their derivatives by the position; each [N or 1, X', Y', Z']."""
        grid = [torch.arange(n, dtype=torch.float64, device=device) for n in s.target]
        i, j, k = grid[0][:, None, None], grid[1][:, None], grid[2]
        taps = []
        for axis in range(3):
            m = s.matrix[4 * axis : 4 * axis + 4]
            position = (m[0] * i + m[1] * j + m[3] + m[2] * k).expand(s.target)[None]
            if displacement is not None:
                position = position + displacement[:, axis].double()
            tap, fraction, slope = locate(position, s.source[axis], s.boundary)
            weights, slopes = spline_weights(fraction.to(dtype), s.order)
            taps.append((tap, weights, [w * slope.to(dtype) for w in slopes]))
        return taps

    def _each(self, taps, s: Sampling):
        """(tap counts a, b, c; offset into the coefficients of one volume) for every tap."""
        _, py, pz = s.padded
        first = (taps[0][0] * py + taps[1][0]) * pz + taps[2][0]
        for a in range(s.order + 1):
            for b in range(s.order + 1):
                for c in range(s.order + 1):
                    yield a, b, c, (first + ((a * py + b) * pz + c)).flatten(1)

    def __call__(self, coefficients, displacement, s: Sampling):
        n, channels = coefficients.shape[:2]
        taps = self._taps(displacement, s, coefficients.dtype, coefficients.device)
        flat, (wx, wy, wz) = coefficients.flatten(2), (t[1] for t in taps)
        out = flat.new_zeros((n, channels, prod(s.target)))
        for a, b, c, offset in self._each(taps, s):
            value = flat.gather(2, offset[:, None].expand(n, channels, -1))
            out = out + (wx[a] * wy[b] * wz[c]).flatten(1)[:, None] * value
        return out.reshape(n, channels, *s.target)

    def slope(self, coefficients, displacement, grad, s: Sampling):
        n, channels = coefficients.shape[:2]
        taps = self._taps(displacement, s, coefficients.dtype, coefficients.device)
        flat, grad = coefficients.flatten(2), grad.flatten(2)
        (wx, dx), (wy, dy), (wz, dz) = (t[1:] for t in taps)
        out = flat.new_zeros((n, 3, *s.target))
        for a, b, c, offset in self._each(taps, s):
            value = (grad * flat.gather(2, offset[:, None].expand(n, channels, -1))).sum(1).reshape(n, *s.target)
            parts = dx[a] * wy[b] * wz[c], wx[a] * dy[b] * wz[c], wx[a] * wy[b] * dz[c]
            out += torch.stack([part * value for part in parts], dim=1)
        return out

    def adjoint(self, displacement, grad, s: Sampling):
        n, channels = grad.shape[:2]
        taps = self._taps(displacement, s, grad.dtype, grad.device)
        wx, wy, wz = (t[1] for t in taps)
        size, grad = prod(s.padded), grad.reshape(n * channels, prod(s.target))
        out = grad.new_zeros(n * channels * size)
        start = torch.arange(n * channels, device=grad.device)[:, None] * size
        for a, b, c, offset in self._each(taps, s):
            weight = (wx[a] * wy[b] * wz[c]).flatten(1)
            index = (start + self._per_volume(offset, n, channels)).flatten()
            source = (grad * self._per_volume(weight, n, channels)).flatten()
            # Both add in a fixed order: the one on the CPU, the other, by sorting, on CUDA.
            out = out.index_add(0, index, source) if not out.is_cuda else out.index_put((index,), source, True)
        return out.reshape(n, channels, *s.padded)

    def _per_volume(self, per_batch: torch.Tensor, n: int, channels: int) -> torch.Tensor:
        return per_batch.expand(n, -1)[:, None].expand(-1, channels, -1).flatten(0, 1)
