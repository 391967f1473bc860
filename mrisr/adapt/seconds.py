"""How long a network may learn, and for how many steps that is: known without PyTorch, so that a bad number is refused
at once."""

from __future__ import annotations

import numbers
from typing import Any

from mrisr.errors import UsageError

MOST_SECONDS = 3600.0
# What was measured (benchmarks/results/adapt.json): so many steps, of which two cores with AMX-BF16 and nothing else to
# do take a few more each second than the rule asks for.
STEPS, STEPS_PER_SECOND = 450, 2.5


def check_seconds(seconds: Any) -> float:
    """The argument `adapt`, 0 where there is nothing to learn. Raises UsageError."""
    if seconds is None:
        return 0.0
    number = not isinstance(seconds, bool) and isinstance(seconds, numbers.Real)
    if not number or not (seconds == 0 or 1 <= seconds <= MOST_SECONDS):
        raise UsageError(
            f"adapt: expected None, or from 1 to {MOST_SECONDS:g} seconds to learn from the scan, found {seconds!r}"
        )
    return float(seconds)


def steps_of(seconds: float) -> int:
    """Steps that a number of seconds asks for, whatever the machine: those that two cores of the reference machine
    would take, and never more than were measured."""
    return min(STEPS, int(STEPS_PER_SECOND * seconds))
