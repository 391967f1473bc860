"""One operator against its rivals: outputs are compared with float64 first, then everything is timed side by side.

A contender that is wrong gets no time, and where ours is wrong nobody gets one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import timing
import torch

from mrisr.errors import BackendError

F32 = 4  # bytes


def ours(name: str, device: str, call: Callable) -> dict[str, Callable]:
    """Backend -> call(backend=...), for the compiled backends of a family that run on this device."""
    from mrisr import ops
    from tests.ops.parity import device_of

    able = [b for b in ops.families()[name].backends if b.name != "reference" and b.available() is None]
    kind = torch.device(device).type
    return {b.name: partial(call, backend=b.name) for b in able if device_of(b) == kind}


def compiled(function: Callable, quick: bool) -> Callable:
    """torch.compile of a rival; a quick run only traces it."""
    return torch.compile(function, backend="eager" if quick else "inductor", dynamic=False)


def draw(*shape: int, device: str = "cpu", seed: int = 0) -> torch.Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


@dataclass
class Contest:
    """One case of one family, ready to run.

    Attributes:
        family, case: names.
        ours: backend name -> call.
        rivals: name -> call.
        expected: what each call returns, float64 on the CPU; or None where there is nothing to compare.
        tolerance: largest |out - expected| / max |expected|.
        bytes_moved, flop: the least that has to be moved (every input read once, every output written once) and done.
        unlike: rivals that do comparable work but not the same function; they are timed without comparison.
        inside: (out) -> the part of out that is compared.
    """

    family: str
    case: str
    ours: dict[str, Callable[[], torch.Tensor]]
    rivals: dict[str, Callable[[], torch.Tensor]]
    expected: torch.Tensor | None
    tolerance: float = 1e-4
    bytes_moved: int = 0
    flop: int = 0
    unlike: tuple[str, ...] = ()
    inside: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda out: out)


ROUNDS = 4  # of measuring the ceilings


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do at most: bytes/s of a copy, FLOP/s of a float32 matrix product."""

    copy: float
    matmul: float

    @classmethod
    def measured(cls, device: str, quick: bool = False) -> Ceilings:
        """The best of several rounds: one that something else disturbs would flatter every operator of the run."""
        rounds = 1 if quick else ROUNDS
        return cls(
            max(timing.copy_bandwidth(device, 2**20 if quick else None) for _ in range(rounds)),
            max(timing.matmul_rate(device, n=128 if quick else None) for _ in range(rounds)),
        )

    def floor(self, contest: Contest) -> float:
        """Seconds that no version can run much faster than."""
        return max(contest.bytes_moved / self.copy, contest.flop / self.matmul)


def error_of(contest: Contest, out: torch.Tensor) -> float:
    """Largest |out - expected| / max |expected|; infinite where shapes, or the places of NaN or infinities, differ."""
    answer, expected = contest.inside(out.detach()).double().cpu(), contest.inside(contest.expected)
    if answer.shape != expected.shape:
        return float("inf")
    finite = expected.isfinite()
    same = (answer == expected) | (answer.isnan() & expected.isnan())
    if not torch.equal(answer.isfinite(), finite) or not bool(same[~finite].all()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    return float((answer - expected)[finite].abs().max() / expected[finite].abs().max().clamp(min=1e-30))


def hold(contest: Contest, device: str, ceilings: Ceilings, budget: float = 0.5) -> dict:
    """Compare, then time. Returns one row; "failures" in it says what was wrong."""
    row = {"family": contest.family, "case": contest.case, "errors": {}, "seconds": {}, "absent": {}, "failures": []}
    runnable, broken = {}, False
    for name, call in {**contest.ours, **contest.rivals}.items():
        try:
            out = call()
        except Exception as error:  # noqa: BLE001 - a rival that is absent or fails is a finding
            row["absent"][name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if name in contest.ours and not isinstance(error, BackendError):  # broken, not absent
                row["failures"].append(f"{contest.family} {contest.case}: {name} raised {row['absent'][name]}")
                broken = True
            continue
        if contest.expected is None or name in contest.unlike:
            runnable[name] = call
            continue
        row["errors"][name] = error = error_of(contest, out)
        if error <= contest.tolerance:
            runnable[name] = call
        else:
            row["failures"].append(f"{contest.family} {contest.case}: {name} is off by {error:.1e}")
    if (
        broken
        or any(name in contest.ours for name in set(row["errors"]) - set(runnable))
        or not set(runnable) & set(contest.ours)
    ):
        return row
    row["seconds"] = {name: timing.seconds(call, device, budget) for name, call in runnable.items()}
    best = min(row["seconds"][name] for name in contest.ours if name in runnable)
    row["best"] = next(name for name in contest.ours if row["seconds"].get(name) == best)
    row["floor_s"] = ceilings.floor(contest)
    row["share_of_floor"] = round(row["floor_s"] / best, 3)
    row["times_faster_than"] = {n: round(s / best, 2) for n, s in row["seconds"].items() if n in contest.rivals}
    # What is wrong with a rival alone is worth knowing, not a failure of ours.
    row["wrong_rivals"], row["failures"] = row["failures"], []
    return row


def line(row: dict) -> str:
    """One row for the screen."""
    if not row["seconds"]:
        why = "; ".join(row["failures"]) or str(row["absent"])
        return f"{row['family']:<13} {row['case']:<26} no speed: {why}"
    against = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in row["times_faster_than"].items())
    against += "".join(f"; wrong, not timed: {text}" for text in row["wrong_rivals"])
    against += "".join(f"; no {name} ({why})" for name, why in row["absent"].items())
    ours = f"{row['seconds'][row['best']] * 1e3:9.3f} ms {row['best']:<9} {row['share_of_floor']:6.1%} of floor"
    return f"{row['family']:<13} {row['case']:<26} {ours}  {against}"
