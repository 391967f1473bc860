"""The MRD stream and everything that a client can do wrong: garbage, silence, haste, too many at once."""

from __future__ import annotations

import resource
import socket
import struct
import threading
import time

import numpy as np
import pytest

pytest.importorskip("ismrmrd", reason="the MRD stream needs ismrmrd (extra mrd)")
import ismrmrd  # noqa: E402
import mrd_client as client  # noqa: E402
from mrd_client import XML, assert_lives, messages  # noqa: E402
from stand_in import plain, slow, wait_until  # noqa: E402

from mrisr.errors import UsageError  # noqa: E402
from mrisr.serve.mrd import Server  # noqa: E402
from mrisr.serve.mrd_wire import Limits  # noqa: E402

HEAD = bytes(ismrmrd.ImageHeader())


def claimed(**fields) -> bytes:
    head = ismrmrd.ImageHeader()
    head.data_type, head.channels = 5, 1
    head.matrix_size[:] = (4, 4, 1)
    for name, value in fields.items():
        if name == "matrix_size":
            head.matrix_size[:] = value
        else:
            setattr(head, name, value)
    return struct.pack("<H", 1022) + bytes(head)


GARBAGE = {
    "a 4 GB XML header": (struct.pack("<HI", 3, 0xFFFFFFFF), "claims 4294967295 bytes"),
    "a 4 GB text": (struct.pack("<HI", 5, 0xFFFFFFFF), "claims 4294967295 bytes"),
    "endless attributes": (claimed() + struct.pack("<Q", 2**63), "claims 9223372036854775808 bytes"),
    "a huge matrix": (claimed(matrix_size=(65535, 65535, 65535)) + struct.pack("<Q", 0), "claims 1125848"),
    "no matrix": (claimed(matrix_size=(4, 0, 1)), "expected voxels on every axis"),
    "complex": (claimed(data_type=7), "send the magnitude"),
    "an unknown type": (claimed(data_type=99), "data type 99"),
    "coils": (claimed(channels=32), "32 channels"),
    "raw data": (struct.pack("<H", 1008) + b"\0" * 340, "raw k-space"),
    "an unknown message": (struct.pack("<H", 777), "message 777 is none"),
    "a browser": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "is none of the MRD stream"),
    "noise": (np.random.default_rng(1).bytes(100000), "none of the MRD stream"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_gets_one_line_and_the_server_lives(mrd_server, what):
    server, (raw, words) = mrd_server(), GARBAGE[what]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reply = client.send(server.server_address, raw, config=None, header=None, close=False, timeout=60)
    assert len(reply.errors) == 1 and words in reply.errors[0] and reply.closed
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB: nothing claimed was allocated
    assert_lives(server)


def test_a_config_that_is_no_json_or_deep_is_survived(mrd_server):
    images, _ = client.stack()
    server = mrd_server()
    for text in ("[" * 200_000, "[1, 2]", '{"parameters": 5}', "\x00", "plain words", '{"parameters": {"a\\nb": 1}}'):
        reply = client.send(server.server_address, client.text_message(2, text), *messages(images))
        assert reply.closed and not reply.errors and len(reply.images) == 17
    for size in ('"-1"', "NaN", "null", "[1]", "1" + "0" * 400):
        reply = client.send(server.server_address, client.text_message(2, f'{{"parameters": {{"voxelsize": {size}}}}}'))
        assert "voxelsize: expected 0.1 to 10 mm" in reply.errors[0], size


def test_waveforms_are_skipped(mrd_server):
    images, _ = client.stack()
    wave = ismrmrd.Waveform.from_array(np.arange(20, dtype=np.uint32).reshape(2, 10))
    raw = [struct.pack("<H", 1026) + wave.to_bytes()]
    reply = client.send(mrd_server().server_address, *raw, *messages(images), *raw)
    assert len(reply.images) == 17 and any("2 waveforms" in text for text in reply.texts)


@pytest.mark.parametrize("where", ["config", "image"])
def test_a_client_that_vanishes_leaves_nothing(mrd_server, where):
    server = mrd_server()
    images, _ = client.stack()
    sock = socket.create_connection(server.server_address)
    sock.sendall(b"".join(messages(images))[:5000] if where == "image" else struct.pack("<H", 1) + b"mri")
    sock.close()
    wait_until(lambda: server.budget.in_use == 0 and not server._open)
    assert_lives(server)


def test_a_client_that_vanishes_ends_its_job(mrd_server):
    server = mrd_server(slow(600), beat=0.05)
    images, _ = client.stack()
    sock = socket.create_connection(server.server_address)
    sock.sendall(b"".join(messages(images)) + struct.pack("<H", 4))
    wait_until(lambda: server.jobs._running is not None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, as of a lost machine
    sock.close()
    wait_until(lambda: server.jobs._running is None and not server._open)


def test_a_silent_client_is_let_go(mrd_server):
    server = mrd_server(limits=Limits(idle=0.2))
    reply = client.send(server.server_address, config=None, header=None, close=False, timeout=60)
    assert "nothing came for 0.2 s" in reply.errors[0]


def test_a_client_that_drips_is_let_go(mrd_server):
    server = mrd_server(limits=Limits(idle=5, receive=0.5))
    with socket.create_connection(server.server_address, timeout=60) as sock:
        raw = struct.pack("<H", 1) + b"x" * 1024
        try:
            for i in range(60):
                sock.sendall(raw[i : i + 1])
                time.sleep(0.02)
        except OSError:
            pass
        assert "longer than 0.5 s" in client.receive(sock).errors[0]


def test_what_all_connections_hold_is_bounded(mrd_server):
    server = mrd_server(hold=100_000)
    images, _ = client.stack((64, 64, 8))
    reply = client.send(server.server_address, *messages(images))
    assert "would be held" in reply.errors[0]
    wait_until(lambda: server.budget.in_use == 0)


def test_a_hundred_connections(mrd_server):
    """All get an answer: their result, or a line that says that too many are there. None hangs, the server lives."""
    server = mrd_server(slow(0.02), connections=4, waiting=2)
    images, _ = client.stack((8, 8, 4))
    replies, raw = [], messages(images)

    def one() -> None:
        replies.append(client.send(server.server_address, *raw, timeout=120))

    threads = [threading.Thread(target=one) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert len(replies) == 100
    done = [reply for reply in replies if len(reply.images) == 5]
    told = [reply for reply in replies if reply.errors]
    cut = [reply for reply in replies if not reply.order]  # beyond all doors: closed at once
    assert len(done) >= 4 and len(done) + len(told) + len(cut) == 100
    assert all("connections are being served" in r.errors[0] or "wait already" in r.errors[0] for r in told)
    wait_until(lambda: not server._open)
    assert_lives(server)


def test_images_leave_the_filters_of_warnings_alone(mrd_server, monkeypatch):
    """They are of the whole process: swapped by two connections at once, those of a job would be lost."""
    import warnings

    server, (images, _) = mrd_server(), client.stack((8, 8, 4))
    monkeypatch.setattr(warnings, "catch_warnings", None)
    assert len(client.send(server.server_address, *messages(images)).images) == 5


def test_one_job_at_a_time(mrd_server):
    running, most = [], []

    def count(volume, progress, **options):
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        return plain(volume, progress)

    server = mrd_server(count)
    images, _ = client.stack((8, 8, 4))
    replies = []
    threads = [
        threading.Thread(target=lambda: replies.append(client.send(server.server_address, *messages(images))))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert [len(reply.images) for reply in replies] == [5] * 6 and max(most) == 1


def test_a_result_that_takes_too_long_is_given_up(mrd_server):
    images, _ = client.stack()
    reply = client.send(mrd_server(slow(30), job=0.3).server_address, *messages(images))
    assert "longer than 0.3 s" in reply.errors[0] and len(reply.images) == 16


def test_stopping_hands_back(mrd_server):
    server = mrd_server(slow(30))
    images, _ = client.stack()
    replies = []
    thread = threading.Thread(target=lambda: replies.append(client.send(server.server_address, *messages(images))))
    thread.start()
    wait_until(lambda: server.jobs._running is not None)
    server.stop(5.0)
    thread.join(60)
    assert "stopping" in replies[0].errors[0] and len(replies[0].images) == 16 and replies[0].closed


def test_a_port_in_use_is_a_clear_line(mrd_server):
    address = mrd_server().server_address
    with pytest.raises(UsageError, match="cannot listen there"):
        Server(address, None)


def test_no_patient_in_the_log(mrd_server, caplog):
    caplog.set_level("DEBUG")
    header = XML.replace(
        "<acquisitionSystem",
        "<subjectInformation><patientName>DOE^JANE</patientName></subjectInformation><acquisitionSystem",
        1,
    )
    images, _ = client.stack()
    for image in images:
        image.attribute_string = ismrmrd.Meta({"PatientName": "DOE^JANE"}).serialize()
    reply = client.send(mrd_server().server_address, *messages(images), header=header)
    assert len(reply.images) == 17 and "DOE" not in caplog.text and not any("DOE" in text for text in reply.texts)
