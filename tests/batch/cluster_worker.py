"""What the workers of the cluster tests load first: a ledger of what they begin and finish, and scans that end them.

Names say what a scan does: "poison" kills its worker, "hog" takes memory until it is ended, "full" finds no room on
worker 0. LEDGER names the ledger, LEDGER_SECONDS how long each scan takes at least.
"""

from __future__ import annotations

import os
import signal
import time

from mrisr.batch import run

# dask loads this more than once into one process.
run.real = real_one, real_write = getattr(run, "real", (run.one, run.write_image))


def note(what: str, name: str) -> None:
    with open(os.environ["LEDGER"], "a", encoding="utf-8") as ledger:
        ledger.write(f"{what} {name} {os.getpid()}\n")


def one(scan, settings):
    note("start", scan.name)
    if "poison" in scan.name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hog" in scan.name:
        held = []
        for _ in range(60):  # 3 GB at most: far beyond what the worker may have
            held.append(bytearray(os.urandom(1 << 20) * 50))
            time.sleep(0.1)
        raise AssertionError(f"{len(held)} blocks were given, and the worker lives")
    outcome = real_one(scan, settings)
    note("end", scan.name)
    return outcome


def write_image(volume, target, *rest, **how):
    from distributed import get_worker

    time.sleep(float(os.environ.get("LEDGER_SECONDS", "0")))
    if "full" in target.name and get_worker().name == 0:
        raise OSError(28, "No space left on device", str(target))
    real_write(volume, target, *rest, **how)
    note("written", target.name)


run.one, run.write_image = one, write_image
