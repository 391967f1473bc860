"""The DICOM node: nothing is lost, nothing half is sent, whatever comes in which order and whenever it is killed."""

from __future__ import annotations

import os
import struct
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the DICOM node needs pynetdicom (extra dicom)")
import dicom_peer as peers  # noqa: E402
from dicom_peer import empty  # noqa: E402
from stand_in import wait_until  # noqa: E402

from mrisr.errors import BackendError, InputError, OutputError  # noqa: E402
from mrisr.serve.spool import Spool  # noqa: E402


def test_a_series_comes_back_derived_and_nothing_stays(start, pacs):
    node, sent = start(), peers.series()
    assert peers.send(node, sent) == [0] * len(sent)
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent)
    assert node.budget.in_use == 0


def test_echo_and_titles(start):
    node = start(callers=("SCANNER",))
    association = peers.associate(node)
    assert association.send_c_echo().Status == 0
    association.release()
    assert peers.associate(node, called="OTHER").is_rejected
    assert peers.associate(node, calling="STRANGER").is_rejected


def test_originals_on_disk_are_what_was_sent(start, pacs):
    seen = {}

    def look(source, target, progress):
        from pydicom import dcmread

        seen.update({ds.SOPInstanceUID: ds for ds in map(dcmread, source.glob("*.dcm"))})
        peers.derive(source, target, progress)

    node, sent = start(look), peers.series()
    peers.send(node, sent)
    wait_until(lambda: empty(node))
    assert all(seen[ds.SOPInstanceUID] == ds for ds in sent)


def test_two_interleaved_series_stay_apart(start, pacs):
    folders = []

    def count(source, target, progress):
        folders.append(len(list(source.glob("*.dcm"))))
        peers.derive(source, target, progress)

    node, one, other = start(count), peers.series(5), peers.series(7)
    mixed = [ds for pair in zip(one, other) for ds in pair] + other[5:]
    peers.send(node, mixed)
    wait_until(lambda: empty(node))
    assert sorted(folders) == [5, 7]
    assert set(pacs.stored) == peers.expected(one + other)


def test_one_job_at_a_time_and_the_rest_waits_on_disk(start, pacs):
    running, most = [], []

    def count(source, target, progress):
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        peers.derive(source, target, progress)
        running.pop()

    node = start(count, waiting=1)
    sent = [peers.series(2) for _ in range(6)]
    for one in sent:
        peers.send(node, one)
    wait_until(lambda: empty(node))
    assert max(most) == 1 and set(pacs.stored) == peers.expected(sum(sent, []))


@pytest.mark.parametrize("end", ["abort", "cut"])
def test_half_a_series_waits_and_is_derived_when_its_sender_comes_back(start, pacs, end):
    node, sent = start(), peers.series()
    peers.send(node, sent[:3], end=end)
    time.sleep(0.8)
    assert not pacs.stored and len(node.spool.all()) == 1
    peers.send(node, sent)
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent)


def test_half_a_series_that_nobody_completes_is_put_aside(start, pacs, caplog):
    caplog.set_level("INFO")
    node = start(patience=0.4)
    peers.send(node, peers.series()[:3], end="abort")
    wait_until(lambda: not node.spool.all())
    (failed,) = node.spool.failed.iterdir()
    assert "half a series" in (failed / "reason.txt").read_text() and len(list((failed / "in").iterdir())) == 3
    assert not pacs.stored and "half a series" in caplog.text


def test_a_peer_that_stalls_within_an_instance_is_let_go(start, pacs):
    node, sent = start(timeout=2.0), peers.series()
    association = peers.associate(node)
    association.send_c_store(sent[0])
    association.dul.socket.socket.sendall(struct.pack(">BBL", 4, 0, 5000) + b"x" * 100)
    wait_until(lambda: not node._server.active_associations)
    assert not pacs.stored
    peers.deliver(node, sent)
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent) and node.budget.in_use == 0


def test_instances_that_come_during_the_job_make_it_begin_again(start, pacs):
    going, go_on, runs = threading.Event(), threading.Event(), []

    def wait(source, target, progress):
        runs.append(len(list(source.glob("*.dcm"))))
        peers.derive(source, target, progress)
        going.set()
        go_on.wait(60)

    node, sent = start(wait), peers.series()
    peers.send(node, sent[:4])
    assert going.wait(60)
    peers.send(node, sent[4:])
    go_on.set()
    wait_until(lambda: empty(node))
    assert runs == [4, 6] and set(pacs.stored) == peers.expected(sent)


def test_the_same_series_twice_is_the_same_instances(start, pacs):
    node, sent = start(), peers.series()
    for _ in range(2):
        peers.send(node, sent)
        wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent) and pacs.times == 2 * len(sent)


def test_synthetic_series_are_not_upscaled_again(start, pacs):
    node, sent = start(), peers.series()
    for ds in sent:
        ds.SyntheticData = "YES"
    assert peers.send(node, sent) == [0] * len(sent)
    assert empty(node)


def test_what_cannot_be_used_is_put_aside_with_its_reason(start, pacs, caplog):
    def refuse(source, target, progress):
        (target / "half.dcm").write_bytes(b"half")
        raise InputError("slices are missing between 3 and 4")

    node = start(refuse)
    peers.send(node, peers.series())
    wait_until(lambda: empty(node))
    (failed,) = node.spool.failed.iterdir()
    assert (failed / "reason.txt").read_text() == "slices are missing between 3 and 4\n"
    assert len(list((failed / "in").iterdir())) == 6 and not pacs.stored
    assert [r.levelname for r in caplog.records if "slices are missing" in r.message] == ["ERROR"]


def test_a_bug_is_put_aside_and_the_node_lives(start, pacs):
    calls = []

    def fail_once(source, target, progress):
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("once")
        peers.derive(source, target, progress)

    node, sent = start(fail_once), peers.series()
    peers.send(node, peers.series())
    wait_until(lambda: len(list(node.spool.failed.iterdir())) == 1)
    peers.send(node, sent)
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent)


# Disk


def test_a_full_disk_is_0xa700_and_the_peer_may_send_again(start, pacs, monkeypatch):
    node, sent = start(), peers.series()
    monkeypatch.setattr(Spool, "free", lambda self: 100)
    assert peers.send(node, sent) == [0xA700] * len(sent) and empty(node)
    monkeypatch.undo()
    assert peers.send(node, sent) == [0] * len(sent)
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_in_the_middle_of_a_file(start, pacs, monkeypatch):
    node, sent = start(), peers.series()
    plain = os.fsync

    def full(handle):
        with open("/dev/full", "wb", buffering=0) as stream:
            stream.write(b"x")

    monkeypatch.setattr(os, "fsync", full)
    assert peers.send(node, sent[:1], end="abort") == [0xA700]
    monkeypatch.setattr(os, "fsync", plain)
    assert not list(node.spool.work.iterdir())
    peers.send(node, sent)
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent)


NOT_THE_SERIES = [
    OSError(28, "No space left on device"),
    OutputError("x.dcm: cannot be written"),
    BackendError("the native core was built of other sources"),
]


@pytest.mark.parametrize("error", NOT_THE_SERIES, ids=["full", "not written", "no engine"])
def test_what_is_not_the_fault_of_a_series_is_tried_again(start, pacs, error):
    calls = []

    def full_once(source, target, progress):
        calls.append(1)
        if len(calls) == 1:
            (target / "half.dcm").write_bytes(b"half")
            raise error
        peers.derive(source, target, progress)

    node, sent = start(full_once), peers.series()
    peers.send(node, sent)
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent) and not list(node.spool.failed.iterdir())


# Sending


def test_nothing_is_deleted_before_the_peer_has_stored_it(start, pacs):
    node, sent = start(), peers.series()
    pacs.status = 0xA700
    peers.send(node, sent)
    wait_until(lambda: pacs.times >= 2)
    (series,) = node.spool.all()
    assert len(list(series.inputs.iterdir())) == len(list(series.out.iterdir())) == 6
    pacs.status = 0x0000
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent)


def test_a_peer_that_is_away_is_tried_again(start, pacs):
    node, sent = start(), peers.series()
    pacs.stop()
    peers.send(node, sent)
    wait_until(lambda: any(series.out.exists() for series in node.spool.all()))
    time.sleep(0.4)
    pacs.start()
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent)


# Killed and started again


def test_a_killed_node_resumes_whatever_it_was_at(tmp_path, start, pacs):
    """The folder of a node is copied at four moments, as a kill leaves it, and a node started on each copy."""
    sent, copies = peers.series(), {}

    def copying(source, target, progress):
        peers.derive(source, target, progress)
        copies["deriving"] = peers.clone(tmp_path / "first", tmp_path / "deriving")

    first = start(copying, folder=tmp_path / "first", quiet=0.6)
    pacs.status = 0xA700
    peers.send(first, sent)
    wait_until(lambda: not first._touched)
    copies["quiet"] = peers.clone(tmp_path / "first", tmp_path / "quiet")
    wait_until(lambda: pacs.times)
    copies["sending"] = peers.clone(tmp_path / "first", tmp_path / "sending")
    first.stop()
    pacs.status = 0x0000
    for moment, folder in copies.items():
        pacs.stored.clear()
        node = start(folder=folder)
        wait_until(lambda node=node: empty(node))
        assert set(pacs.stored) == peers.expected(sent), moment
        assert not list(node.spool.failed.iterdir()), moment


def test_a_node_killed_in_reception_waits_for_the_sender(tmp_path, start, pacs):
    sent = peers.series()
    first = start(folder=tmp_path / "first")
    association = peers.associate(first)
    for ds in sent[:4]:
        association.send_c_store(ds)
    copy = peers.clone(tmp_path / "first", tmp_path / "copy")
    (copy / "work" / "0.part").write_bytes(b"half a file")
    association.release()
    node = start(folder=copy)
    time.sleep(0.5)
    assert len(node.spool.all()) == 1 and not list(node.spool.work.iterdir())
    pacs.stored.clear()
    peers.send(node, sent)
    wait_until(lambda: empty(node))
    assert peers.expected(sent) <= set(pacs.stored)


def test_a_series_that_kills_the_node_every_time_is_put_aside(tmp_path, start, pacs):
    node = start(quiet=30)
    peers.send(node, peers.series())
    wait_until(lambda: not node._touched)
    (series,) = node.spool.all()
    for _ in range(3):
        series.begin()
    node.stop()
    again = start()
    wait_until(lambda: not again.spool.all())
    (failed,) = again.spool.failed.iterdir()
    assert "begun 3 times" in (failed / "reason.txt").read_text()


def test_stopping_hands_the_job_back(start, pacs):
    going, over = threading.Event(), threading.Event()

    def slow(source, target, progress):
        going.set()
        try:
            while True:
                progress("network", 0.1)
                time.sleep(0.01)
        finally:
            over.set()

    node, sent = start(slow), peers.series()
    peers.send(node, sent)
    assert going.wait(60)
    node.stop(60.0)
    assert over.is_set() and not pacs.stored
    again = start()
    wait_until(lambda: empty(again))
    assert set(pacs.stored) == peers.expected(sent)
