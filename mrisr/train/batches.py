"""A step's batch, divided among processes and pieces so that the division changes nothing but rounding."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from mrisr.data.patches import Batch
from mrisr.errors import TrainingError
from mrisr.nn.condition import Condition
from mrisr.ops.noise import normal_noise


@dataclass(frozen=True)
class Draws:
    """What is random about the pairs of a step: a function of (seed, step, place of the pair in the whole batch).

    Attributes:
        seed, step: of the run.
        places: of the pairs at hand.
    """

    seed: int
    step: int
    places: tuple[int, ...]

    def generators(self, purpose: int) -> list[torch.Generator]:
        """One generator a pair; another `purpose`, other numbers."""
        seeds = [np.random.default_rng([self.seed, purpose, self.step, p]).integers(2**62) for p in self.places]
        return [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        """Standard normal noise [N, 1, D, H, W], made where `like` is."""
        seed = int(np.random.default_rng([self.seed, 2, self.step]).integers(2**62))
        noise = [normal_noise(like.shape[2:], seed=seed, sample=p, device=like.device) for p in self.places]
        return torch.stack(noise)[:, None]

    def common(self) -> np.random.Generator:
        """A generator that every process and piece shares: for what the whole step decides."""
        return np.random.default_rng([self.seed, 3, self.step])


def share_of(count: int, ranks: int, pieces: int) -> int:
    """Pairs of one process, of `count` in all; TrainingError where they cannot be divided evenly."""
    # Half of a batch is new and half mirrored (`PatchSampler.batch`), so both halves have to divide.
    unit = pieces * (2 * ranks if ranks > 1 else 1)
    if count % unit:
        raise TrainingError(
            f"batch: {count} pairs a step cannot be divided evenly among {ranks} processes with accumulate={pieces}; "
            f"use a multiple of {unit}"
        )
    return count // ranks


def places(count: int, rank: int, ranks: int) -> tuple[int, ...]:
    """Where the `count` pairs of `rank` stand in the whole batch, in the order of `PatchSampler.batch`."""
    new = (count + 1) // 2
    fresh = range(rank * new, (rank + 1) * new)
    mirrored = range(ranks * new + rank * (count - new), ranks * new + (rank + 1) * (count - new))
    return (*fresh, *mirrored)


def pieces(batch: Batch, draws: Draws, count: int):
    """(batch, draws) of `count` equal pieces, to be learnt from one after the other."""
    size = len(batch.kinds) // count
    for first in range(0, size * count, size):
        rows = slice(first, first + size)
        part = Batch(batch.target[rows], batch.y[rows], _rows(batch.cond, rows), batch.kinds[rows], batch.band[rows])
        yield part, replace(draws, places=draws.places[rows])


def _rows(cond: Condition, rows: slice) -> Condition:
    parts = {f.name: getattr(cond, f.name) for f in fields(cond)}
    return replace(cond, **{k: v[rows] for k, v in parts.items() if isinstance(v, torch.Tensor)})
