"""One stack of several of one head: its forward model from a grid that is not its own, and the joint solution.

A stack lies askew to the grid that the answer is wanted on, and the head has moved between two stacks. So its forward
model is A = D R: R reads the fine volume (quintic B-spline) on a grid along the stack's own axes, where the head was
while this stack was measured, and D is the acquisition along those axes (`mrisr.physics.degrade.ForwardModel`). Both
have exact adjoints. `solve` finds the volume that all stacks agree on, each as far as its noise lets it.

Gholipour et al., IEEE TMI 29(10), 2010 (super-resolution from stacks of slices); Hestenes and Stiefel 1952 (CG).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.grid import Grid
from mrisr.ops.resample import resample3d, resample3d_adjoint
from mrisr.physics.degrade import ForwardModel
from mrisr.physics.psf import PSF

COVERED = 0.98  # of what a sample of a stack averages over, so much lies on the target's grid at least
EDGE = 1e-6  # voxels: the rounding of a voxel's place on the edge of a field of view
ORDER = 5  # of the spline that reads the volume askew


@dataclass(frozen=True, eq=False)
class StackModel:
    """A: [X, Y, Z] on `target` -> [x, y, z] on `stack`, float32 or float64.

    Attributes:
        target, stack: grids.
        between: the fine grid along the stack's axes.
        turn: target axis that lies along each axis of `between`, and whether it runs the other way.
        matrix: [4, 4], index of `between` -> index of the turned target.
        acquisition: D, from `between` to `stack`.
    """

    target: Grid
    stack: Grid
    between: Grid
    turn: tuple[tuple[int, int, int], tuple[int, ...]]
    matrix: np.ndarray
    acquisition: ForwardModel

    @classmethod
    def of(cls, target: Grid, stack: Grid, psf: PSF, motion: np.ndarray | None = None) -> StackModel:
        """Of a stack with this point spread (of its own axes).

        motion: [4, 4] mm to mm: where the stack shows what lies at a point of the target's world; None: just there.
        """
        motion = np.eye(4) if motion is None else np.asarray(motion, np.float64)
        to_target = np.linalg.inv(target.affine) @ np.linalg.inv(motion)
        order = nearest_axes(np.linalg.inv(target.affine) @ stack.affine)
        size = tuple(target.voxel_size[a] for a in order)
        between = grids.plan(stack, voxel_size=size)
        index = to_target @ between.affine
        flipped = tuple(axis for axis, a in enumerate(order) if index[a, axis] < 0)
        index = index[[*order, 3]]
        for axis in flipped:
            index[axis] *= -1
            index[axis, 3] += target.shape[order[axis]] - 1
        acquisition = ForwardModel.between(between.shape, between.voxel_size, stack.shape, stack.voxel_size, psf)
        return cls(target, stack, between, (order, flipped), index, acquisition)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A x."""
        return self.acquisition.forward(self.read(x))

    def adjoint(self, v: torch.Tensor) -> torch.Tensor:
        """A^T v: <Ax, v> = <x, A^T v>."""
        order, flipped = self.turn
        spread = self.acquisition.adjoint(v)
        shape_as_stack = tuple(self.target.shape[a] for a in order)
        x = resample3d_adjoint(spread.contiguous(), shape_as_stack, self.matrix, order=ORDER)
        return (x.flip(flipped) if flipped else x).permute(tuple(int(a) for a in np.argsort(order))).contiguous()

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """R x: the volume on the fine grid of the stack."""
        order, flipped = self.turn
        view = x.permute(order)
        view = view.flip(flipped) if flipped else view
        return resample3d(view.contiguous(), self.between.shape, self.matrix, order=ORDER)

    def covered(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Which samples of the stack see nothing but what lies on the target's grid: bool [x, y, z]."""
        shape_as_stack = tuple(self.target.shape[a] for a in self.turn[0])
        return self.acquisition.forward(within(self.matrix, self.between.shape, shape_as_stack, device)) > COVERED


def within(index: np.ndarray, shape, other, device: torch.device | str = "cpu") -> torch.Tensor:
    """Which voxels of a grid lie within the field of view of another: float32 [*shape], 0 or 1.

    Args:
        index: [4, 4], index of the grid -> index of the other.
        shape, other: voxels of the two along each axis.
    """
    mask = torch.ones(tuple(shape), device=device)
    for axis, n in enumerate(other):
        at = index[axis, 3]
        for k, m in enumerate(shape):
            line = torch.arange(m, dtype=torch.float64, device=device) * index[axis, k]
            at = at + line.reshape([-1 if k == j else 1 for j in range(3)])
        mask *= (at >= -0.5 - EDGE) & (at <= n - 0.5 + EDGE)
    return mask


def nearest_axes(index: np.ndarray) -> tuple[int, int, int]:
    """The row axis that each of the three column axes of a matrix [4, 4] runs along most nearly, each once."""
    cosines = np.abs(index[:3, :3]) / np.linalg.norm(index[:3, :3], axis=0)
    return max(permutations(range(3)), key=lambda order: sum(cosines[a, axis] for axis, a in enumerate(order)))


@dataclass(frozen=True, eq=False)
class Measured:
    """A stack as the solver sees it.

    Attributes:
        model: A.
        values: float [x, y, z], normalised intensities.
        weight: float [x, y, z] or a number, 1 / variance of the noise; 0 where a sample does not count.
    """

    model: StackModel
    values: torch.Tensor
    weight: torch.Tensor


def solve(
    stacks: Sequence[Measured],
    start: torch.Tensor,
    *,
    prior: torch.Tensor | None = None,
    trust: float | torch.Tensor = 0.0,
    smooth: float = 0.0,
    iterations: int = 12,
    tolerance: float = 1e-3,
    tick: Callable[[float], None] = lambda fraction: None,
) -> torch.Tensor:
    """argmin over x of  sum w |A x - v|^2 + trust |x - prior|^2 + smooth |grad x|^2,  by conjugate gradients.

    Args:
        start: float [X, Y, Z], where they begin.
        prior, trust: what x is expected to be, and 1 / variance of that; a number, or float [X, Y, Z].
        smooth: 1 / variance of the difference of two neighbours.
        iterations: at most.
        tolerance: of the residual's norm over that of the right-hand side.
    """

    def normal(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x) if prior is None else trust * x
        for s in stacks:
            out += s.model.adjoint(s.weight * s.model.forward(x))
        return out.add_(roughness(x), alpha=smooth) if smooth else out

    right = torch.zeros_like(start) if prior is None else trust * prior
    for s in stacks:
        right += s.model.adjoint(s.weight * s.values)
    x = start.clone()
    r = right - normal(x)
    enough = tolerance**2 * float(right.double().square().sum())
    p, rho = r.clone(), _dot(r, r)
    for k in range(iterations):
        if rho <= enough:
            break
        q = normal(p)
        step = rho / _dot(p, q)
        x.add_(p, alpha=step)
        r.sub_(q, alpha=step)
        rho, before = _dot(r, r), rho
        p.mul_(rho / before).add_(r)
        tick((k + 1) / iterations)
    return x


def roughness(x: torch.Tensor) -> torch.Tensor:
    """The gradient of half the squared differences of neighbours, which go nowhere at the ends."""
    out = torch.zeros_like(x)
    for axis in range(3):
        d = x.diff(dim=axis)
        n = d.shape[axis]
        out.narrow(axis, 0, n).sub_(d)
        out.narrow(axis, 1, n).add_(d)
    return out


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """In double, a plane at a time: no volume of doubles is made."""
    return sum(float(torch.dot(x.flatten().double(), y.flatten().double())) for x, y in zip(a, b))
