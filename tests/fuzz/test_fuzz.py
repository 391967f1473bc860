"""Files that somebody else wrote, or damaged: each entry point reads them or refuses them in one line.

Every kind of file in `targets.TARGETS`: no exception but a MrisrError, none slower than 2 s of processor time, no more
than `MEMORY` taken. Seeds are fixed. `MRISR_FUZZ_ROUNDS` multiplies the number of cases (1: half a minute; 55: 100 000
inputs); `MRISR_FUZZ_KEEP` names a folder that gets the files that fail.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time
import warnings
from contextlib import contextmanager

import pytest

from mrisr.errors import MrisrError
from tests.fuzz.targets import TARGETS

ROUNDS = int(os.environ.get("MRISR_FUZZ_ROUNDS", "1"))
SLOWEST = 2.0  # seconds of processor time
MEMORY = 512 << 20  # bytes above what the process holds before
LONGEST_LINE = 1500
NEEDS = {"dicom": "pydicom"}


@contextmanager
def limited_memory():
    """Address space for twice `MEMORY` more: what asks for all memory fails at once instead of taking it."""
    if not sys.platform.startswith("linux"):
        yield
        return
    with open("/proc/self/statm") as held:
        now = int(held.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2 * MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(target, path) -> tuple[str, float]:
    """("read" or "refused"; or what was wrong with how it ended, seconds)."""
    begun = time.process_time()
    try:
        target.enter(path)
        ended = "read"
    except MrisrError as error:
        text = str(error)
        ended = "refused" if "\n" not in text and len(text) < LONGEST_LINE else f"not one line: {text[:500]!r}"
    except Exception as error:  # noqa: BLE001 - what is looked for
        ended = f"{type(error).__name__}: {str(error)[:300]}"
    return ended, time.process_time() - begun


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused_in_one_line(name, tmp_path):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name}: the extra is not installed")
    target, path = TARGETS[name], tmp_path / TARGETS[name].file
    sound, rng = target.sound(tmp_path), random.Random(name)
    path.write_bytes(sound)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert attempt(target, path)[0] == "read"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wrong, ends, slowest = [], {"read": 0, "refused": 0}, 0.0
        with limited_memory():
            for i in range(target.cases * ROUNDS):
                damage = target.damages[i % len(target.damages)]
                data = damage(sound, rng)
                path.write_bytes(data)
                ended, seconds = attempt(target, path)
                slowest = max(slowest, seconds)
                if ended in ends and seconds <= SLOWEST:
                    ends[ended] += 1
                else:
                    wrong.append((i, ended, round(seconds, 2)))
                    if keep := os.environ.get("MRISR_FUZZ_KEEP"):
                        os.makedirs(keep, exist_ok=True)
                        with open(os.path.join(keep, f"{name}-{i}-{path.name}"), "wb") as f:
                            f.write(data)
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    print(
        f"{name}: {ends['read']} read, {ends['refused']} refused, {len(wrong)} otherwise, "
        f"slowest {slowest:.2f} s, {taken >> 20} MB more"
    )
    assert not wrong, f"{len(wrong)} of {target.cases * ROUNDS}: " + "; ".join(map(str, wrong[:8]))
    assert ends["refused"] > 0 and taken <= MEMORY
