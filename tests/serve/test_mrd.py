"""The MRD stream: geometry, order, what comes back, and everything that a client can do wrong."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ismrmrd", reason="the MRD stream needs ismrmrd (extra mrd)")
import ismrmrd  # noqa: E402
import mrd_client as client  # noqa: E402
from stand_in import plain, slow  # noqa: E402

from mrisr.errors import UsageError  # noqa: E402
from mrisr.serve.mrd import Server  # noqa: E402
from mrisr.serve.mrd_wire import Limits  # noqa: E402

XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><acquisitionSystemInformation>
<systemVendor>ACME</systemVendor><systemFieldStrength_T>2.89</systemFieldStrength_T></acquisitionSystemInformation>
<encoding><encodingLimits><kspace_encoding_step_2><maximum>0</maximum></kspace_encoding_step_2></encodingLimits>
</encoding></ismrmrdHeader>"""


def messages(images) -> list[bytes]:
    return [client.image_message(image) for image in images]


def derived_of(reply, sent: int):
    return reply.images[sent:]


def test_130_images_keep_their_centre(mrd_server, random_model):
    import mrisr

    def upscale(volume, progress, **options):
        return mrisr.upscale(volume, model=random_model("local"), voxel_size=1.0, progress=progress, return_info=True)

    images, centre = client.stack((12, 10, 130), voxel=(1.4, 1.4, 1.3), centre=(-7.3, 12.1, 55.7))
    reply = client.send(mrd_server(upscale).server_address, *messages(images))
    assert reply.closed and not reply.errors
    (volume,) = derived_of(reply, 130)
    assert np.abs(client.centre_of([volume]) - centre).max() < 1e-3
    assert volume.matrix_size == (17, 14, 169)
    # Against the standard's own words: the field of view is as long as it was, to half an output voxel.
    assert np.abs(np.array(volume.field_of_view) - (12 * 1.4, 10 * 1.4, 130 * 1.3)).max() <= 0.5
    head = volume.getHead()
    assert np.allclose(head.read_dir, images[0].read_dir) and np.allclose(head.slice_dir, images[0].slice_dir)
    assert volume.data.dtype == np.float32 and np.isfinite(volume.data).all()


def test_originals_come_back_first_and_byte_for_byte(mrd_server):
    images, _ = client.stack()
    sent = messages(images)
    reply = client.send(mrd_server().server_address, *sent)
    assert reply.raw[: len(sent)] == [message[2:] for message in sent]
    assert len(reply.images) == len(sent) + 1
    assert reply.images[-1].image_series_index == 4
    meta = ismrmrd.Meta.deserialize(reply.images[-1].attribute_string)
    assert meta["ImageType"] == "DERIVED\\SECONDARY\\M\\RESAMPLED" and "not for diagnosis" in meta["ImageComments"]
    assert "IceMiniHead" not in meta


def test_originals_can_be_left_out(mrd_server):
    images, _ = client.stack()
    no = client.text_message(5, '{"parameters": {"sendoriginal": "False", "voxelsize": 0.8}}')
    reply = client.send(mrd_server().server_address, no, *messages(images))
    assert [image.matrix_size for image in reply.images] == [(25, 28, 40)]


def test_changed_slice_count_makes_one_explicit_volume(mrd_server):
    images, centre = client.stack((20, 18, 16), voxel=(1.0, 1.25, 2.0))
    (volume,) = derived_of(client.send(mrd_server().server_address, *messages(images)), 16)
    meta = ismrmrd.Meta.deserialize(volume.attribute_string)
    assert volume.matrix_size == (20, 23, 32) and volume.slice == 0
    told = ("slice_count", "NumberOfSlices", "partition_count", "SliceNo", "Actual3DImagePartNumber")
    assert [int(meta[name]) for name in told] == [32, 32, 1, 0, 0]
    assert meta["Keep_image_geometry"] == "0"
    assert np.abs(client.centre_of([volume]) - centre).max() < 1e-3


def test_unchanged_slice_count_keeps_slices(mrd_server):
    images, centre = client.stack((20, 18, 16), voxel=(1.0, 1.25, 2.0))
    change = client.text_message(5, '{"parameters": {"voxelsize": 2.0}}')
    derived = derived_of(client.send(mrd_server().server_address, change, *messages(images)), 16)
    assert len(derived) == 16 and np.abs(client.centre_of(derived) - centre).max() < 1e-3
    for k, (image, source) in enumerate(zip(derived, images)):
        assert np.abs(np.array(image.position) - source.position).max() < 1e-3
        meta = ismrmrd.Meta.deserialize(image.attribute_string)
        assert image.slice == int(meta["SliceNo"]) == k and image.image_index == k + 1 == int(meta["NumberInSeries"])
        assert image.field_of_view[2] == source.field_of_view[2]  # the thickness, not the distance


def test_voxels_are_where_the_header_says(mrd_server):
    """A bright voxel of the source is found at its place in the result, by both headers alone."""
    data = np.full((20, 18, 16), 10.0)
    data[13, 4, 11] = 900.0
    images, _ = client.stack(data=data)
    (volume,) = derived_of(client.send(mrd_server().server_address, *messages(images)), 16)

    def place(image, index):
        h = image.getHead()
        axes = np.stack([h.read_dir, h.phase_dir, h.slice_dir], axis=1)
        size = np.array(h.field_of_view) / h.matrix_size
        return np.array(h.position) + axes @ (size * (np.array(index) - (np.array(h.matrix_size) - 1) / 2))

    bright = np.argwhere(volume.data[0] > 800)[:, ::-1].mean(axis=0)  # stored [z, y, x]
    assert np.abs(place(volume, bright) - place(images[11], (13, 4, 0))).max() < 0.51


@pytest.mark.parametrize("order", ["shuffled", "reversed"])
def test_slices_may_come_in_any_order(mrd_server, order):
    images, _ = client.stack()
    server = mrd_server()
    straight = derived_of(client.send(server.server_address, *messages(images)), 16)[0]
    mixed = images[::-1] if order == "reversed" else [images[k] for k in np.random.default_rng(0).permutation(16)]
    assert np.array_equal(derived_of(client.send(server.server_address, *messages(mixed)), 16)[0].data, straight.data)


def test_ushort_stays_ushort_and_clipped_voxels_are_counted(mrd_server, head):
    def brighter(volume, progress, **options):
        result, info = plain(volume, progress)
        return result.replace(result.data * 100 - 5000, result.affine), info

    images, _ = client.stack(dtype=np.uint16)
    reply = client.send(mrd_server(brighter).server_address, *messages(images))
    (volume,) = derived_of(reply, 16)
    assert volume.data.dtype == np.uint16 and volume.data.min() == 0 and volume.data.max() == 65535
    (note,) = [text for text in reply.texts if "clipped" in text]
    count = int(re.search(r"(\d+) of", note)[1])
    assert 0 < count <= ((volume.data == 0) | (volume.data == 65535)).sum()


def test_a_3d_image_is_a_volume(mrd_server):
    images, centre = client.stack()
    block = ismrmrd.Image.from_array(np.concatenate([image.data[0] for image in images]), transpose=False)
    block.field_of_view, block.position = (20.0, 22.5, 32.0), tuple(centre)
    block.read_dir, block.phase_dir, block.slice_dir = images[0].read_dir, images[0].phase_dir, images[0].slice_dir
    (volume,) = derived_of(client.send(mrd_server().server_address, client.image_message(block)), 1)
    stacked = derived_of(client.send(mrd_server().server_address, *messages(images)), 16)[0]
    assert np.array_equal(volume.data, stacked.data) and np.allclose(volume.position, stacked.position, atol=1e-4)


@pytest.mark.parametrize("counted", [True, False])
def test_repeats_and_series_are_volumes_of_their_own(mrd_server, counted):
    first, _ = client.stack()
    second, _ = client.stack(data=np.random.default_rng(0).uniform(0, 900, (20, 18, 16)))
    for image in second:
        image.repetition = 1 if counted else 0
    interleaved = [image for pair in zip(first, second) for image in pair]
    derived = derived_of(client.send(mrd_server().server_address, *messages(interleaved)), 32)
    alone = [derived_of(client.send(mrd_server().server_address, *messages(one)), 16)[0] for one in (first, second)]
    assert [image.image_series_index for image in derived] == [4, 5]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(derived, alone))


def test_phase_images_are_sent_back_only(mrd_server):
    images, _ = client.stack()
    phase, _ = client.stack()
    for image in phase:
        image.image_type = ismrmrd.IMTYPE_PHASE
    reply = client.send(mrd_server().server_address, *messages(images + phase))
    assert len(reply.images) == 33 and any("16 images that are no magnitude" in text for text in reply.texts)


@pytest.mark.parametrize("header", [XML, XML + "\n", "Dummy XML header", "", None])
def test_headers(mrd_server, header):
    seen = {}

    def look(volume, progress, **options):
        seen.update(volume.meta)
        return plain(volume, progress)

    images, _ = client.stack()
    reply = client.send(mrd_server(look).server_address, *messages(images), header=header)
    assert reply.closed and not reply.errors and len(reply.images) == 17
    assert seen["SliceThickness"] == pytest.approx(1.8)
    if header and "ismrmrd" in header:
        assert (seen["Manufacturer"], seen["MagneticFieldStrength"], seen["MRAcquisitionType"]) == ("ACME", 2.89, "2D")
    elif header is not None:
        assert any(text.startswith("WRN") and "is no XML" in text for text in reply.texts)


def flawed(kind: str):
    images, _ = client.stack()
    if kind == "missing":
        del images[7]
    elif kind == "one slice":
        del images[1:]
    elif kind == "tilted":
        images[3].read_dir, images[3].slice_dir = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
        images[3].phase_dir = (0.0, 1.0, 0.0)
    elif kind == "not unit":
        for image in images:
            image.read_dir = (2.0, 0.0, 0.0)
    elif kind == "no field of view":
        for image in images:
            image.field_of_view = (0.0, 0.0, 0.0)
    elif kind == "nan":
        images[2].position = (float("nan"), 0.0, 0.0)
    elif kind == "constant":
        for image in images:
            image.data[:] = 7
    elif kind == "half a repeat":
        images += images[:5]
    return images


FLAWS = {
    "missing": "a slice is missing",
    "one slice": "one slice",
    "tilted": "not parallel",
    "not unit": "right angles",
    "no field of view": "field of view",
    "nan": "finite",
    "constant": "constant",
    "half a repeat": "half a series",
}


@pytest.mark.parametrize("kind", FLAWS)
def test_a_series_that_cannot_be_used_is_sent_back_with_one_clear_line(mrd_server, kind):
    server, sent = mrd_server(), messages(flawed(kind))
    reply = client.send(server.server_address, *sent)
    assert reply.closed and len(reply.errors) == 1 and FLAWS[kind] in reply.errors[0]
    assert reply.raw == [message[2:] for message in sent]
    assert_lives(server)


def test_nothing_derived_is_sent_where_one_of_two_volumes_fails(mrd_server):
    images, _ = client.stack()
    other = flawed("missing")
    for image in other:
        image.repetition = 1
    reply = client.send(mrd_server().server_address, *messages(images + other))
    assert len(reply.images) == 31 and len(reply.errors) == 1


def test_a_failing_job_is_told_and_the_server_lives(mrd_server):
    def fail(volume, progress, **options):
        raise RuntimeError("the network has a hole")

    images, _ = client.stack()
    reply = client.send(mrd_server(fail).server_address, *messages(images))
    assert "the network has a hole" in reply.errors[0] and len(reply.images) == 16 and reply.closed


def assert_lives(server) -> None:
    images, _ = client.stack((8, 8, 4))
    reply = client.send(server.server_address, *messages(images))
    assert reply.closed and len(reply.images) == 5
    wait_until(lambda: server.budget.held == 0)


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
    reply = client.send(server.server_address, raw, config=None, header=None, close=False, timeout=10)
    assert len(reply.errors) == 1 and words in reply.errors[0] and reply.closed
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB: nothing claimed was allocated
    assert_lives(server)


def test_a_config_that_is_no_json_or_deep_is_survived(mrd_server):
    images, _ = client.stack()
    server = mrd_server()
    for text in ("[" * 200_000, "[1, 2]", '{"parameters": 5}', "\x00", "plain words", '{"parameters": {"a\\nb": 1}}'):
        reply = client.send(server.server_address, client.text_message(2, text), *messages(images))
        assert reply.closed and not reply.errors and len(reply.images) == 17
    reply = client.send(server.server_address, client.text_message(2, '{"parameters": {"voxelsize": "-1"}}'))
    assert "voxelsize: expected 0.1 to 10 mm" in reply.errors[0]


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
    wait_until(lambda: server.budget.held == 0 and not server._open)
    assert_lives(server)


def wait_until(true, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)


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
    reply = client.send(server.server_address, config=None, header=None, close=False, timeout=10)
    assert "nothing came for 0.2 s" in reply.errors[0]


def test_a_client_that_drips_is_let_go(mrd_server):
    server = mrd_server(limits=Limits(idle=5, receive=0.5))
    with socket.create_connection(server.server_address, timeout=10) as sock:
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
    wait_until(lambda: server.budget.held == 0)


def test_a_hundred_connections(mrd_server):
    """All get an answer: their result, or a line that says that too many are there. None hangs, the server lives."""
    server = mrd_server(slow(0.02), connections=4, waiting=2)
    images, _ = client.stack((8, 8, 4))
    replies, raw = [], messages(images)

    def one() -> None:
        replies.append(client.send(server.server_address, *raw, timeout=30))

    threads = [threading.Thread(target=one) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(replies) == 100
    done = [reply for reply in replies if len(reply.images) == 5]
    told = [reply for reply in replies if reply.errors]
    cut = [reply for reply in replies if not reply.order]  # beyond all doors: closed at once
    assert len(done) >= 4 and len(done) + len(told) + len(cut) == 100
    assert all("connections are being served" in r.errors[0] or "wait already" in r.errors[0] for r in told)
    wait_until(lambda: not server._open)
    assert_lives(server)


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
        thread.join(30)
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
    thread.join(10)
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


def test_the_command(weights_file):
    """`mrisr serve mrd` as a process: a round trip, then SIGTERM ends it with code 0."""
    words = ["-m", "mrisr.cli.main", "serve", "mrd", "--port", "0", "--model", str(weights_file), "--voxel-size", "1"]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        port = int(re.search(r"mrd on 127\.0\.0\.1 port (\d+)", line)[1])
        images, centre = client.stack()
        reply = client.send(("127.0.0.1", port), *messages(images))
        assert len(reply.images) == 17 and np.abs(client.centre_of(reply.images[16:]) - centre).max() < 1e-3
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "stopped" in process.stderr.read()
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif("MRISR_MRD_CLIENT" not in os.environ, reason="MRISR_MRD_CLIENT names no python-ismrmrd-server")
def test_the_public_client(mrd_server, tmp_path):
    """`client.py` of python-ismrmrd-server, whose folder MRISR_MRD_CLIENT names, gets its 130 images and one volume."""
    images, centre = client.stack((24, 22, 130), voxel=(1.4, 1.4, 1.3))
    source, target = tmp_path / "in.h5", tmp_path / "out.h5"
    dataset = ismrmrd.Dataset(str(source), "dataset")
    for image in images:
        dataset.append_image("image_3", image)
    dataset.close()
    folder = Path(os.environ["MRISR_MRD_CLIENT"])
    port = mrd_server().server_address[1]
    words = [str(source), "-a", "127.0.0.1", "-p", str(port), "-o", str(target), "-G", "dataset", "-c", "mrisr"]
    done = subprocess.run(
        [sys.executable, folder / "client.py", *words], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    dataset = ismrmrd.Dataset(str(target), "dataset", False)
    assert dataset.number_of_images("image_3") == 130
    assert np.array_equal(dataset.read_image("image_3", 64).data, images[64].data)
    volume = dataset.read_image("image_4", 0)
    assert np.abs(client.centre_of([volume]) - centre).max() < 1e-3
