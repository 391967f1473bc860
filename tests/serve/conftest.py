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


# A node that decides, gives up and tries again within tenths of a second.
SOON = {"quiet": 0.15, "patience": 30.0, "timeout": 5.0, "tick": 0.02, "retry": (0.1, 0.3), "reserve": 0}


@pytest.fixture(scope="module")
def archive():
    from dicom_peer import Pacs

    with Pacs() as running:
        yield running


@pytest.fixture
def pacs(archive):
    archive.stored, archive.status, archive.times, archive.refused = {}, 0x0000, 0, None
    return archive


@pytest.fixture
def start(tmp_path, pacs):
    """start(derive=..., folder=..., host=..., **settings) -> a running `mrisr.serve.dicom.Node`; stopped afterwards."""
    from dicom_peer import derive as plain_derive

    from mrisr.serve.dicom import Node, Settings
    from mrisr.serve.dicom_send import Peer

    running = []

    def make(derive=plain_derive, folder=None, host="127.0.0.1", **settings) -> Node:
        place, peer = folder or tmp_path / "spool", Peer("PACS", host, pacs.port)
        node = Node(("127.0.0.1", 0), place, peer, derive, Settings(**{**SOON, **settings}))
        running.append(node)
        return node

    yield make
    for node in running:
        if not node._stopped.is_set():
            node.stop(2.0)
