"""The DICOM node and who misbehaves: garbage, too many, endless; folders, ports and peers that cannot be."""

from __future__ import annotations

import logging
import os
import socket
import struct

import pytest

pytest.importorskip("pynetdicom", reason="the DICOM node needs pynetdicom (extra dicom)")
import dicom_peer as peers  # noqa: E402
from dicom_peer import empty  # noqa: E402
from stand_in import wait_until  # noqa: E402

from mrisr.errors import UsageError  # noqa: E402
from mrisr.serve.dicom import Node  # noqa: E402
from mrisr.serve.dicom_send import Peer  # noqa: E402
from mrisr.serve.spool import Spool  # noqa: E402


def raw(node: Node, data: bytes) -> bytes:
    with socket.create_connection(node.address, timeout=60) as sock:
        sock.sendall(data)
        try:
            return sock.recv(4096)
        except ConnectionError:
            return b""


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(5000),
        struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + b"x" * 1000,
        struct.pack(">BBL", 4, 0, 0xFFFFFFFF),
        struct.pack(">BBL", 1, 0, 68) + b"\0" * 68,
        b"",
    ],
    ids=["browser", "noise", "a 4 GB request", "4 GB of data", "an empty request", "nothing"],
)
def test_garbage_is_hung_up_on_and_the_node_lives(start, pacs, data):
    node, sent = start(timeout=2.0), peers.series(2)
    raw(node, data)
    peers.deliver(node, sent)
    wait_until(lambda: empty(node) and not node._server.active_associations)
    assert set(pacs.stored) == peers.expected(sent) and node.budget.in_use == 0


def test_a_claimed_4_gb_is_one_line(start, caplog):
    node = start()
    assert raw(node, struct.pack(">BBL", 1, 0, 0xFFFFFFFF)) == b""
    wait_until(lambda: "claims 4294967295 bytes" in caplog.text)


def test_an_endless_instance_is_hung_up_on(start, caplog):
    """Fragments without an end: the sum is bounded, whatever their number."""
    node = start(hold=1 << 20)
    association = peers.associate(node)
    part = b"x" * 100_000
    pdv = struct.pack(">L", len(part) + 2) + struct.pack(">BB", 1, 0) + part
    pdu = struct.pack(">BBL", 4, 0, len(pdv)) + pdv
    command = bytes.fromhex("00000000040000003800000000000200")
    first = struct.pack(">L", len(command) + 2) + struct.pack(">BB", 1, 1) + command
    sock = association.dul.socket.socket
    try:
        sock.sendall(struct.pack(">BBL", 4, 0, len(first)) + first)
        for _ in range(40):
            sock.sendall(pdu)
    except OSError:
        pass
    wait_until(lambda: not node._server.active_associations)
    assert node.budget.in_use == 0


def test_an_instance_that_is_no_image(start):
    node, (ds,) = start(), peers.series(1)
    for key in ("Rows", "SeriesInstanceUID"):
        del ds[key]
        assert peers.send(node, [ds]) == [0xC000]
    assert empty(node)


def released(association) -> bool:
    """Whether it was established; it is released."""
    established = association.is_established
    if established:
        association.release()
    return established


def test_a_hundred_connections(start, pacs, caplog):
    node, sent = start(associations=4, timeout=1.0), peers.series(2)
    socks = []
    for _ in range(100):
        sock = socket.create_connection(node.address, timeout=60)
        socks.append(sock)
    # While some of the hundred still wait to be taken, a caller is refused, and calls again.
    wait_until(lambda: released(peers.associate(node)))
    peers.deliver(node, sent)
    wait_until(lambda: empty(node))
    for sock in socks:
        sock.close()
    assert set(pacs.stored) == peers.expected(sent)


def test_connections_that_are_gone_have_no_seat(start, pacs, monkeypatch):
    """As of a port scanner: opened, closed, nothing said. The time-out is of those that stay."""
    monkeypatch.setattr("mrisr.serve.dicom.TO_ASK", 300.0)
    node, sent = start(associations=2, timeout=300.0), peers.series(2)
    for _ in range(60):
        socket.create_connection(node.address, timeout=60).close()
    wait_until(lambda: not node._server.active_associations)
    peers.deliver(node, sent)
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent)


def test_more_associations_than_allowed_are_refused(start):
    node = start(associations=2)
    open_ones = [peers.associate(node) for _ in range(4)]
    assert [a.is_established for a in open_ones] == [True, True, False, False]
    for association in open_ones[:2]:
        association.release()


def test_no_name_and_no_uid_in_the_log(start, pacs, caplog):
    caplog.set_level(logging.DEBUG)
    node, sent = start(), peers.series(name="DOE^JANE^" + "x" * 80)
    peers.send(node, sent)
    del sent[0].Rows
    peers.send(node, sent[:1])
    wait_until(lambda: empty(node))
    ours = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith("pynetdicom"))
    assert "DOE" not in caplog.text and "4711" not in ours and sent[0].SeriesInstanceUID not in ours


def test_two_nodes_need_two_folders(tmp_path, start):
    start()
    with pytest.raises(UsageError, match="another node works there"):
        start()


def test_a_port_in_use(start, pacs, tmp_path):
    with pytest.raises(UsageError, match="cannot listen there"):
        Node(start().address, tmp_path / "other", Peer("A", "127.0.0.1", 1), peers.derive)
    Spool(tmp_path / "other").close()  # and the folder is free again


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ORTHANC",
        "ORTHANC@host",
        "@host:1",
        "A@host:0",
        "A@host:70000",
        "A" * 17 + "@h:1",
        "P\u00c4CS@h:1",
        "A\nB@h:1",
        "A@h\n:1",
        " @h:1",
    ],
)
def test_peers_that_are_none(text):
    with pytest.raises(UsageError, match="expected AET@host:port"):
        Peer.parse(text)


def test_peers():
    assert Peer.parse("ORTHANC@[::1]:4242") == Peer("ORTHANC", "::1", 4242)
    assert Peer.parse("A B@pacs.example:104") == Peer("A B", "pacs.example", 104)
