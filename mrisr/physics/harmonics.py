"""Real solid spherical harmonics, and their gradients as harmonics again.

With P_n^m the associated Legendre function without the Condon-Shortley phase, the basis is

    N_nm (r^n) P_n^m(cos theta) cos(m phi)   and   ... sin(m phi),   N_n0 = 1,
    N_nm = sqrt((2n + 1) (n - m)! / (2 (n + m)!))  for m > 0,

which is how Siemens normalises its gradient coils ("lnorm = 4"). The functions are polynomials in (x, y, z); the
derivative of one of degree n is a sum of at most two of degree n - 1, so a Jacobian is exact and costs what a value
costs. Recurrences: Press et al., Numerical Recipes, section 6.7; derivatives: Perez-Jorda and Yang, Chemical Physics
Letters 247, 1995 (in other normalisations).
"""

from __future__ import annotations

from functools import lru_cache
from math import factorial, prod, sqrt

import numpy as np
import torch

COSINE, SINE = 0, 1
CHUNK = 1 << 16  # points whose basis fits a cache


def terms(degree: int) -> list[tuple[int, int, int]]:
    """(n, m, COSINE or SINE) of every basis function up to `degree`, in the order of weights: K = (degree + 1)^2."""
    return [(n, m, kind) for m in range(degree + 1) for n in range(m, degree + 1) for kind in range(2 if m else 1)]


@lru_cache
def place(degree: int) -> dict[tuple[int, int, int], int]:
    """(n, m, kind) -> its index in `terms(degree)`."""
    return {term: k for k, term in enumerate(terms(degree))}


def normalisation(n: int, m: int) -> float:
    """N_nm of the module's basis."""
    return sqrt((2 * n + 1) * factorial(n - m) / (2 * factorial(n + m))) if m else 1.0


@lru_cache
def gradient_matrices(degree: int) -> np.ndarray:
    """float64 [3, K, K] (do not write into it): d basis_j / d x_a = sum over k of G[a, j, k] basis_k.

    In R_n^m = r^n P_n^m e^(i m phi) / (n + m)!:  (d/dx - i d/dy) R_n^m = R_(n-1)^(m-1),
    (d/dx + i d/dy) R_n^m = -R_(n-1)^(m+1), d/dz R_n^m = R_(n-1)^m, and R_n^(-1) = -conj(R_n^1).
    """
    where, size = place(degree), len(terms(degree))
    matrices = np.zeros((3, size, size))

    def add(axis: int, of, to, factor: float) -> None:
        (n, m, kind), (lower, order, _) = of, to
        if order > lower or to not in where:
            return
        scale = normalisation(n, m) * factorial(n + m) / (normalisation(lower, order) * factorial(lower + order))
        matrices[axis, where[n, m, kind], where[to]] += factor * scale

    for n, m, kind in where:
        if n == 0:
            continue
        add(2, (n, m, kind), (n - 1, m, kind), 1.0)
        if m == 0:
            add(0, (n, 0, COSINE), (n - 1, 1, COSINE), -1.0)
            add(1, (n, 0, COSINE), (n - 1, 1, SINE), -1.0)
            continue
        other, sign = (SINE, -0.5) if kind == COSINE else (COSINE, 0.5)
        add(0, (n, m, kind), (n - 1, m - 1, kind), 0.5)
        add(0, (n, m, kind), (n - 1, m + 1, kind), -0.5)
        add(1, (n, m, kind), (n - 1, m - 1, other), sign)
        add(1, (n, m, kind), (n - 1, m + 1, other), sign)
    return matrices


def evaluate(points: torch.Tensor, weights: np.ndarray | torch.Tensor, degree: int) -> torch.Tensor:
    """sum over k of weights[:, k] basis_k(points).

    Args:
        points: [3, P], floating point, in units of the radius at which the weights are stated.
        weights: [C, K], in the order of `terms(degree)`.

    Returns:
        [C, P], dtype and device of `points`. Differentiable in `points` and in `weights` (where they are a tensor).
    """
    weights = torch.as_tensor(weights, dtype=points.dtype, device=points.device)
    columns = torch.nonzero((weights != 0).any(0))[:, 0].tolist()
    if not columns:
        return points.new_zeros(weights.shape[0], points.shape[1])
    column_of = {terms(degree)[k]: k for k in columns}
    chunks = [_basis(chunk, column_of) for chunk in points.split(CHUNK, dim=1)]
    order, parts = chunks[0][0], [chunk[1] for chunk in chunks]
    some = weights[:, [column_of[term] for term in order]]
    return torch.cat([some @ values for values in parts], dim=1)


def _basis(points: torch.Tensor, column_of) -> tuple[list, torch.Tensor]:
    """The wanted terms in the order in which they come up, and their values [terms, P]."""
    x, y, z = points
    squared = x * x + y * y + z * z
    order, values = [], []
    cosine, sine = torch.ones_like(x), torch.zeros_like(x)
    for m in range(1 + max(m for _, m, _ in column_of)):
        if m:
            cosine, sine = x * cosine - y * sine, x * sine + y * cosine
        top = max((n for n, order_, _ in column_of if order_ == m), default=-1)
        before = current = None
        for n in range(m, top + 1):
            before, current = current, _next_degree(n, m, z, squared, current, before)
            for kind, trigonometric in ((COSINE, cosine), (SINE, sine)):
                if (n, m, kind) in column_of:
                    order.append((n, m, kind))
                    values.append(current * trigonometric)
    return order, torch.stack(values)


def _next_degree(n: int, m: int, z, squared, current, before):
    """r^(n-m) N_nm P_n^m / sin^m theta from those of n - 1 and n - 2."""
    scale = normalisation(n, m)
    if n == m:
        return torch.full_like(z, scale * prod(range(1, 2 * m, 2)))
    step = (2 * n - 1) / (n - m) * scale / normalisation(n - 1, m) * z * current
    if n == m + 1:
        return step
    return step - (n + m - 1) / (n - m) * scale / normalisation(n - 2, m) * squared * before
