"""The contests of ops.py under pytest-benchmark: `pytest benchmarks/`, quick; MRISR_BENCH=full for the real sizes.

A contender that differs from float64 fails and is not timed. Contenders of one case share a group of the table.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import contest
import ops

QUICK = os.environ.get("MRISR_BENCH") != "full"
NAMES = [
    pytest.param(one.family, index, name, id=f"{one.family}-{index}-{name.replace(' ', '_')}")
    for family in ops.op_cases.FAMILIES
    for index, one in enumerate(ops.contests("cpu", True, [family]))
    for name in (*one.ours, *one.rivals)
]


@lru_cache(maxsize=1)  # one family's inputs at a time
def contests(family: str) -> list[contest.Contest]:
    return list(ops.contests("cpu", QUICK, [family]))


@pytest.mark.parametrize(("family", "index", "name"), NAMES)
def test_op(benchmark, family, index, name):
    one = contests(family)[index]
    call = {**one.ours, **one.rivals}[name]
    try:
        out = call()
    except ImportError as error:
        pytest.skip(f"{name}: {error}")
    if name not in one.unlike:
        error = contest.error_of(one, out)
        if error > one.tolerance and name in one.rivals:
            pytest.skip(f"{name} is off by {error:.1e}: not timed")
        assert error <= one.tolerance, f"{name} is off by {error:.1e}: not timed"
    benchmark.group = f"{family} {one.case}"
    benchmark.pedantic(call, rounds=3 if QUICK else 7, warmup_rounds=1)
