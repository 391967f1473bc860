"""The DICOM node and what goes wrong with one series, or for a moment: others go on, and nothing that came is lost."""

from __future__ import annotations

import socket
import time

import pytest

pytest.importorskip("pynetdicom", reason="the DICOM node needs pynetdicom (extra dicom)")
import dicom_peer as peers  # noqa: E402
from dicom_peer import empty  # noqa: E402
from stand_in import wait_until  # noqa: E402

from mrisr.errors import GeometryError  # noqa: E402
from mrisr.serve.spool import Series, Spool  # noqa: E402

FULL = OSError(28, "No space left on device")


def derived(node) -> int:
    """How many series wait for the peer."""
    return sum(series.out.exists() for series in node.spool.all())


def counting(expected: int):
    """A stand-in for `derive` that refuses a folder of other than `expected` files, as reading does a missing slice."""

    def derive(source, target, progress):
        found = len(list(source.glob("*.dcm")))
        if found != expected:
            raise GeometryError(f"slices are missing: {found} of {expected}")
        peers.derive(source, target, progress)

    return derive


# A series that the peer refuses, or that cannot be sent, holds up no other


def test_a_series_that_the_peer_refuses_holds_up_no_other(start, pacs, caplog):
    sent = sorted((peers.series(3) for _ in range(4)), key=lambda one: Spool.key(one[0].SeriesInstanceUID))
    pacs.status, pacs.refused = 0xA900, peers.expected(sent[0] + sent[2])
    node = start()
    for one in sent:
        peers.send(node, one)
    wait_until(lambda: set(pacs.stored) == peers.expected(sent[1] + sent[3]))
    wait_until(lambda: derived(node) == len(node.spool.all()) == 2)
    assert "answers status 0xA900" in caplog.text
    pacs.status = 0
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sum(sent, []))


def test_a_derived_file_that_is_damaged_holds_up_no_other(start, pacs, caplog):
    sent = sorted((peers.series(3) for _ in range(2)), key=lambda one: Spool.key(one[0].SeriesInstanceUID))
    node = start()
    pacs.stop()
    for one in sent:
        peers.send(node, one)
    wait_until(lambda: derived(node) == 2)
    next(iter(node.spool.all()[0].out.iterdir())).write_bytes(b"no DICOM")
    wait_until(lambda: "not sent, tried again in" in caplog.text)  # a try that had read it whole has ended
    pacs.start()
    wait_until(lambda: len(node.spool.all()) == 1)
    assert set(pacs.stored) == peers.expected(sent[1])
    assert node._threads[1].is_alive()


def test_a_peer_whose_name_is_not_found_is_tried_again_with_growing_waits(start, pacs, monkeypatch, caplog):
    plain, asked = socket.getaddrinfo, []

    def look_up(host, *rest, **more):
        if host == "pacs.invalid":
            asked.append(host)
            raise socket.gaierror(-2, "Name or service not known")
        return plain(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    node, sent = start(host="pacs.invalid", retry=(0.2, 60.0)), peers.series(3)
    peers.send(node, sent)
    wait_until(lambda: derived(node) and len(asked) >= 2)
    time.sleep(1.0)
    assert len(asked) <= 4  # after 0, 0.2, 0.6 and 1.4 s
    assert "pacs.invalid" in caplog.text and "cannot be reached (Name or service not known)" in caplog.text


def test_what_an_open_association_sends_again_is_not_sent_on_and_on(start, pacs):
    node, sent = start(), peers.series(3)
    pacs.status = 0xA700
    peers.send(node, sent)
    wait_until(lambda: pacs.times >= 1)
    association = peers.associate(node)
    assert association.send_c_store(sent[0]).Status == 0
    wait_until(lambda: node._open(node.spool.all()[0].key))
    time.sleep(0.4)  # a try that was under way ends
    before, pacs.status = pacs.times, 0
    time.sleep(1.0)
    assert pacs.times == before and derived(node) == 1
    association.release()
    wait_until(lambda: empty(node))
    assert pacs.times == before + 3 and set(pacs.stored) == peers.expected(sent)


# What was put aside, and then more of it comes


@pytest.mark.parametrize("aside", ["refused", "broken off"])
def test_the_rest_of_a_series_that_was_put_aside_makes_it_whole(start, pacs, aside):
    node, sent = start(counting(6), patience=0.3), peers.series(6)
    peers.send(node, sent[:5], end="release" if aside == "refused" else "abort")
    wait_until(lambda: list(node.spool.failed.iterdir()))
    assert empty(node) and not pacs.stored
    peers.deliver(node, sent[5:])
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent) and not list(node.spool.failed.iterdir())


def test_what_is_put_aside_again_has_all_that_came(start, pacs):
    node, sent = start(counting(9), patience=0.3), peers.series(6)
    for few in (sent[:3], sent[3:4], sent[2:3]):
        peers.deliver(node, few)
        wait_until(lambda: empty(node))
    (failed,) = node.spool.failed.iterdir()
    assert len(list((failed / "in").iterdir())) == 4
    assert "4 of 9" in (failed / "reason.txt").read_text()


# Files that were refused are missing in their series, however politely its sender ends


def test_a_series_of_which_files_were_refused_waits_for_its_sender(start, pacs, monkeypatch, caplog):
    node, sent, room = start(), peers.series(6), iter([10**12] * 3)
    monkeypatch.setattr(Spool, "free", lambda self: next(room, 100))
    assert peers.send(node, sent) == [0] * 3 + [0xA700] * 3
    monkeypatch.undo()
    wait_until(lambda: "3 files, and others were refused" in caplog.text)
    time.sleep(0.5)
    assert not pacs.stored and len(node.spool.all()) == 1
    peers.deliver(node, sent)
    wait_until(lambda: empty(node))
    assert set(pacs.stored) == peers.expected(sent) and pacs.times == 6


def test_an_image_that_is_not_understood_spoils_its_own_series_only(start, pacs):
    node, one, other = start(patience=0.5), peers.series(3), peers.series(3)
    del one[1].Rows
    assert peers.send(node, one + other) == [0, 0xC000, 0, 0, 0, 0]
    wait_until(lambda: empty(node))
    (failed,) = node.spool.failed.iterdir()
    assert "files of it were refused" in (failed / "reason.txt").read_text()
    assert set(pacs.stored) == peers.expected(other) and not node._refused


# A folder that cannot be worked with for a moment


def failing_once(monkeypatch, kind, name: str, when=lambda *given: True):
    """Have `kind.name` raise the error of a full disk, the first time that `when(*arguments)` holds."""
    plain, failed = getattr(kind, name), []

    def once(*given):
        if not failed and when(*given):
            failed.append(1)
            raise FULL
        return plain(*given)

    monkeypatch.setattr(kind, name, once)
    return failed


@pytest.mark.parametrize("name", ["all", "keep_result", "discard", "new_folder"])
def test_a_folder_that_fails_for_a_moment(start, pacs, monkeypatch, name):
    node, sent = start(), peers.series(3)
    failed = failing_once(monkeypatch, Spool, name)
    peers.deliver(node, sent)
    wait_until(lambda: failed and empty(node))
    assert set(pacs.stored) == peers.expected(sent) and not list(node.spool.failed.iterdir())
    assert all(thread.is_alive() for thread in node._threads)


def test_a_disk_that_is_full_when_senders_end(start, pacs, monkeypatch):
    """Two series of one association: that it ended in order is not forgotten of either."""
    node, one, other = start(), peers.series(3), peers.series(3)
    failed = failing_once(monkeypatch, Series, "set_released", lambda series, value: value)
    peers.send(node, one + other)
    wait_until(lambda: failed and empty(node))
    assert set(pacs.stored) == peers.expected(one + other) and not list(node.spool.failed.iterdir())


def test_a_disk_that_is_full_when_a_series_is_to_be_put_aside(start, pacs, monkeypatch, caplog):
    node, sent = start(counting(9)), peers.series(3)
    failed = failing_once(monkeypatch, Spool, "fail")
    peers.send(node, sent)
    wait_until(lambda: failed and empty(node))
    (aside,) = node.spool.failed.iterdir()
    assert len(list((aside / "in").iterdir())) == 3
    assert "cannot be put aside" in caplog.text


def test_a_folder_that_stays_away_is_no_flood_of_lines(start, pacs, monkeypatch, caplog):
    start(retry=(0.2, 60.0))

    def away(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Spool, "all", away)
    time.sleep(1.2)
    assert 1 <= caplog.text.count("cannot be worked with") <= 8  # of two threads, after 0, 0.2, 0.6 and 1.4 s
    monkeypatch.undo()
