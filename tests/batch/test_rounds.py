"""Rounds of a cluster by a fake scheduler: who tries a scan once more, who is taken out, and who is not blamed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mrisr.batch import cluster, launch, run, scans
from mrisr.errors import UsageError
from tests.batch.told import Told

pytest.importorskip("distributed", reason="needs the extra cluster")


class Fake:
    """A client whose scheduler has two workers; futures end as told."""

    status = "running"

    def __init__(self, ends):
        self.ends, self.asked, self.retired = ends, [], []

    def get(self, graph, keys, sync):
        return [FakeFuture(key, self.ends) for key in keys]

    def submit(self, function, scan, settings, *, key, workers, **_):
        self.asked.append(workers)
        return FakeFuture(key, self.ends)

    def scheduler_info(self, n_workers):
        return {"workers": {"w0": {}, "w1": {}}}

    def retire_workers(self, names):
        self.retired += names


class FakeFuture:
    status = "finished"
    released: list = []

    def __init__(self, key, ends):
        self.key, self.end = key, ends.pop(0)

    def add_done_callback(self, call):
        call(self)

    def exception(self):
        return self.end if isinstance(self.end, Exception) else None

    def result(self):
        return self.end

    def release(self):
        self.released.append(self.key)


def round_of(ends, count=2):
    tasks = [scans.Scan(Path(f"/i/{i}.nii"), Path(f"/o/{i}.nii"), f"{i}.nii", ()) for i in range(count)]
    ends = [end if isinstance(end, Exception) else (end[0], end[1] and cluster.Worker(end[1], end[1])) for end in ends]
    client, told = Fake(ends), Told()
    made = cluster._Round(launch.Connection(client, lambda: None), tasks, run.Settings({}, {}, run="r"), told)
    return made, client, told


def full(name="0.nii"):
    return run.Outcome(name, "failed", error="No space left", kind="OutputError", exit_code=4, machine=True)


def test_a_scan_is_tried_once_more_elsewhere_and_the_worker_goes():
    done = run.Outcome("0.nii", "done")
    made, client, told = round_of([(full(), "w0"), (run.Outcome("1.nii", "done"), "w1"), (done, "w1")])
    made.start()
    made.finish()
    assert [o.state for o in made.outcomes] == ["done", "done"] and client.asked == [["w1"]]
    assert client.retired == ["w0"] and "w0 is taken out (No space left)" in told.lines[0]
    assert len(FakeFuture.released) == 3


def test_a_worker_that_is_started_again_is_waited_for():
    """The only other one may have died of its own scan just then."""
    done = run.Outcome("0.nii", "done")
    made, client, _ = round_of([(full(), "w0"), (run.Outcome("1.nii", "done"), "w1"), (done, "w2")])
    seen = [{"w0"}, {"w0"}, {"w0", "w2"}]
    client.scheduler_info = lambda n_workers: {"workers": {w: {} for w in (seen.pop(0) if len(seen) > 1 else seen[0])}}
    made.start()
    made.finish()
    assert [o.state for o in made.outcomes] == ["done", "done"] and client.asked == [["w2"]]


def test_what_came_back_to_the_same_worker_is_tried_elsewhere_again():
    """The other one died of a scan of its own before it came to this; the same worker may have another address now."""
    done, other = run.Outcome("0.nii", "done"), (run.Outcome("1.nii", "done"), "w1")
    made, client, told = round_of([(full(), "w0"), other, (full(), "w0"), (done, "w1")])
    made.start()
    made.finish()
    assert [o.state for o in made.outcomes] == ["done", "done"] and client.asked == [["w1"], ["w1"]]
    assert client.retired == ["w0"] and len(told.lines) == 1
    made, client, told = round_of([(full(), "w0"), other, *[(full(), "w0")] * (cluster.TRIES - 1)])
    made.start()
    made.finish()
    assert [o.state for o in made.outcomes] == ["failed", "done"] and not client.retired and not told.lines
    made, client, told = round_of([(full(), "w0"), other, (done, "w0")])  # it has room again
    made.start()
    made.finish()
    assert [o.state for o in made.outcomes] == ["done", "done"] and not client.retired and not told.lines


def test_a_scan_that_waits_its_second_turn_is_not_blamed_for_the_worker():
    """It is given to one worker, where another scan may run: when that ends the worker twice, dask blames both."""
    from distributed import KilledWorker

    killed = KilledWorker("scan-0", None, 1)
    done, other = run.Outcome("0.nii", "done"), (run.Outcome("1.nii", "done"), "w1")
    made, client, _ = round_of([(full(), "w0"), other, killed, (done, "w1")])
    made.start()
    made.finish()
    assert [o.state for o in made.outcomes] == ["done", "done"] and client.retired == ["w0"]
    made, client, _ = round_of([(full(), "w0"), other, *[killed] * (cluster.TRIES - 1)])
    made.start()
    made.finish()
    assert made.outcomes[0] == full() and not client.retired
    large = replace(full(), kind="MemoryError", exit_code=5)
    for ends in ([killed, other], [(large, "w0"), other, killed]):  # which it may well have killed itself
        made, *_ = round_of(ends)
        made.start()
        made.finish()
        assert made.outcomes[0].kind == "KilledWorker"


def test_a_worker_that_was_started_again_is_no_other(monkeypatch):
    found = {"tcp://a:2": {"name": 0}, "tcp://a:3": {"name": 1}}
    monkeypatch.setattr(Fake, "scheduler_info", lambda self, n_workers: {"workers": found})
    made, *_ = round_of([(full(), "w0"), (run.Outcome("1.nii", "done"), "w1")])
    assert made._others(cluster.Worker("0", "tcp://a:1")) == ["tcp://a:3"]


def test_of_one_worker_no_other_is_waited_for(monkeypatch):
    monkeypatch.setattr(Fake, "scheduler_info", lambda self, n_workers: {"workers": {"w0": {}}})
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: pytest.fail("it waits"))
    made, *_ = round_of([(full(), "w0")], 1)
    made.start()
    made.finish()
    assert [o.state for o in made.outcomes] == ["failed"]


def test_where_it_fails_elsewhere_too_the_worker_stays():
    made, client, told = round_of([(full(), "w0"), (run.Outcome("1.nii", "done"), "w1"), (full(), "w1")])
    made.start()
    made.finish()
    assert [o.state for o in made.outcomes] == ["failed", "done"] and not client.retired and not told.lines


def test_what_no_scan_can_have_ends_the_run():
    wrong = run.Outcome("0.nii", "failed", error="ensemble: 3", kind="UsageError", exit_code=2)
    made, *_ = round_of([(wrong, "w0")], 1)
    made.start()
    with pytest.raises(UsageError, match="ensemble: 3"):
        made.finish()


def test_an_error_of_the_library_is_of_its_scan():
    made, *_ = round_of([ModuleNotFoundError("No module named 'mrisr'"), (run.Outcome("1.nii", "done"), "w1")])
    made.start()
    made.finish()
    assert (made.outcomes[0].kind, made.outcomes[0].exit_code) == ("ModuleNotFoundError", 1)
