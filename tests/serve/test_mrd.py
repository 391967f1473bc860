"""The MRD stream: geometry, order, headers, what comes back, and series that cannot be used."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ismrmrd", reason="the MRD stream needs ismrmrd (extra mrd)")
import ismrmrd  # noqa: E402
import mrd_client as client  # noqa: E402
from mrd_client import XML, assert_lives, messages  # noqa: E402
from stand_in import plain  # noqa: E402


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


def test_a_bug_before_the_job_is_told_and_the_images_go_back(mrd_server, monkeypatch):
    from mrisr.io import mrd

    def fail(images, meta):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(mrd, "stacks", fail)
    images, _ = client.stack()
    reply = client.send(mrd_server().server_address, *messages(images))
    assert "a bug in mrisr (ZeroDivisionError)" in reply.errors[0] and len(reply.images) == 16 and reply.closed


def test_the_command(weights):
    """`mrisr serve mrd` as a process: a round trip, then SIGTERM ends it with code 0."""
    words = ["-m", "mrisr.cli.main", "serve", "mrd", "--port", "0", "--model", str(weights), "--voxel-size", "1"]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        port = int(re.search(r"mrd on 127\.0\.0\.1 port (\d+)", line)[1])
        images, centre = client.stack()
        reply = client.send(("127.0.0.1", port), *messages(images))
        assert len(reply.images) == 17 and np.abs(client.centre_of(reply.images[16:]) - centre).max() < 1e-3
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
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
