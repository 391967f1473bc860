"""A process that cannot send and whose HOME is looked at, for whoever has to leave nothing behind.

It runs under a C library that refuses to send (`no_network.c`), with an empty HOME, TMPDIR and working folder, which
are looked at afterwards. conftest.py of a folder of tests takes the fixtures from here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def no_network(tmp_path_factory):
    """Path of the library that refuses to send."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and LD_PRELOAD (Linux)")
    library = tmp_path_factory.mktemp("preload") / "no_network.so"
    source = HERE / "no_network.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def alone(no_network, tmp_path):
    """run(command) -> CompletedProcess, after which HOME, TMPDIR, the working folder and the log were looked at."""

    def run(command: list[str], outputs=("o",), env: dict | None = None) -> subprocess.CompletedProcess:
        places = {name: tmp_path / name for name in ("home", "tmp", "work")}
        for folder in places.values():
            folder.mkdir()
        log = tmp_path / "log"
        surroundings = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MRISR_", "XDG_", "TORCHINDUCTOR_", "CI"))},
            "HOME": str(places["home"]),
            "TMPDIR": str(places["tmp"]),
            "LD_PRELOAD": str(no_network),
            "NO_NETWORK_LOG": str(log),
            **(env or {}),
        }
        done = subprocess.run(command, cwd=places["work"], env=surroundings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not log.exists(), log.read_text()
        assert _under(places["home"]) <= {".cache", ".cache/mrisr"}, "something was written into HOME"
        assert _under(places["tmp"]) == set(), "something was left in TMPDIR"
        assert {Path(name).name.split(".")[0] for name in os.listdir(places["work"])} <= set(outputs)
        return done

    return run


def _under(folder: Path) -> set[str]:
    """Everything in a folder but the inside of the cache."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if not name.startswith(".cache/mrisr/")}
