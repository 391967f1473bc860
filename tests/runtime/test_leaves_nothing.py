"""A program that embeds libmrisr sends nothing, and writes nothing but its output and the cache that it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from libmrisr import LIBRARY

HERE = Path(__file__).parent
EXAMPLES = Path(LIBRARY or "lib/libmrisr.so").parents[1].parent / "examples"
THROUGH_CTYPES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from libmrisr import Library
import numpy as np
library = Library(Path(sys.argv[2]))
model = library.open(sys.argv[3], cache=sys.argv[4].encode())
data = np.fromfile(sys.argv[5], np.float32).reshape(34, 40, 30)
assert np.isfinite(library.upscale(model, data, factor=1.5).data).all()
library.c.mrisr_close(model)
"""


@pytest.fixture
def raw(scan, tmp_path):
    scan.astype(np.float32).tofile(tmp_path / "in.raw")
    return tmp_path / "in.raw"


@pytest.mark.parametrize("program", ["upscale_c", "upscale_cpp"])
def test_the_examples(program, alone, folder, raw, scan):
    numbers = [str(v) for v in (*scan.shape, 1.4, 1.4, 1.4)]
    kept = sorted(os.listdir(folder))
    done = alone([str(EXAMPLES / program), str(folder), str(raw), *numbers, "o.raw", "0.8"])
    assert done.stdout and sorted(os.listdir(folder)) == kept, "the bundle was written into"


def test_a_caller_with_a_cache(alone, folder, raw, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    words = [HERE, LIBRARY, folder, cache, raw]
    alone([sys.executable, "-c", THROUGH_CTYPES, *map(str, words)], outputs=())
    assert any(cache.iterdir()), "the cache that was named is not used"


def test_who_sends_is_caught(no_network, tmp_path):
    """The watch itself: without this, the tests above could pass with a shim that does nothing."""
    log = tmp_path / "log"
    code = "import socket; socket.create_connection(('192.0.2.1', 9), 1)"
    env = {**os.environ, "LD_PRELOAD": str(no_network), "NO_NETWORK_LOG": str(log)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True)
    assert done.returncode != 0 and log.read_text().startswith("connect")
