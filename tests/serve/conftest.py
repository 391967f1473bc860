"""For the services: servers on free ports of the loopback, untrained weights."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stand_in import plain  # noqa: E402


@pytest.fixture
def mrd_server():
    """start(upscale=plain, **settings) -> a running `mrisr.serve.mrd.Server`; stopped after the test."""
    pytest.importorskip("ismrmrd", reason="the MRD stream needs ismrmrd (extra mrd)")
    from mrisr.serve.mrd import Server, Settings

    running = []

    def start(upscale=plain, **settings) -> Server:
        server = Server(("127.0.0.1", 0), upscale, Settings(**{"beat": 0.2, **settings}))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop(5.0)


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory):
    """Path of untrained `tiny` weights: plain interpolation, in milliseconds."""
    from mrisr.nn.presets import build
    from mrisr.train.checkpoint import export_weights

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    meta = {"format": 1, "preset": "tiny", "sigma_data": 0.05, "trained_range": {}}
    export_weights(path, build("tiny").state_dict(), meta)
    return path
