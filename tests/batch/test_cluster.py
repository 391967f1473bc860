"""Scans on a cluster of processes: killed workers, poison, no memory, no room; nothing is lost or written twice."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mrisr.batch import cluster, deliver, failures, launch, provenance, run, scans
from mrisr.cli.main import main
from mrisr.errors import BackendError, OutputError
from tests.batch.told import Told

dask = pytest.importorskip("dask", reason="needs the extra cluster")
pytest.importorskip("distributed", reason="needs the extra cluster")
pytest.importorskip("cryptography", reason="needs the extra cluster")
OPTIONS = {"voxel_size": 1.5, "steps": 1, "samples": 1}
RUNNING = {"threads": 1, "device": "cpu", "engine": "torch"}


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    """lines() of the ledger that every worker of the test writes."""
    path = tmp_path / "ledger"
    path.touch()
    monkeypatch.setenv("LEDGER", str(path))
    with dask.config.set({"distributed.worker.preload": [str(Path(__file__).with_name("cluster_worker.py"))]}):
        yield lambda: [line.split() for line in path.read_text().splitlines()]


def on_cluster(source, out, weights, listener=None, memory=None, **changes):
    work = scans.find(source, out)
    settings = run.Settings(
        **({"running": RUNNING, "model": str(weights), "folder": out, "options": OPTIONS} | changes)
    )
    where = launch.Cluster("local", workers=2, cores=1, memory=memory)
    return cluster.run(work.scans, settings, where, listener)


def working_on(lines):
    """pid -> scan, of those that have begun and not ended."""
    found = {}
    for what, name, pid in lines:
        if what == "start":
            found[int(pid)] = name
        elif what == "end":
            found.pop(int(pid), None)
    return found


def kill_two(lines, killed):
    """kill -9 of a worker in its first scan, and of one when half of the scans are done: never of one scan twice."""
    for done in (0, 4):
        until = time.monotonic() + 120
        while time.monotonic() < until:
            found = lines()
            alive = {pid: name for pid, name in working_on(found).items() if pid not in killed}
            ready = sum(what == "written" for what, *_ in found) >= done
            victim = next((pid for pid, name in alive.items() if name not in killed.values()), None)
            if ready and victim is not None:
                os.kill(victim, signal.SIGKILL)
                killed[victim] = alive[victim]
                break
            time.sleep(0.02)


@pytest.mark.slow("four workers start, two of them in place of the killed; the rounds by a fake are in test_rounds.py")
def test_killed_workers_lose_no_scan_and_write_none_twice(make_scans, weights, tmp_path, ledger, monkeypatch):
    names = [f"s/{i}.nii.gz" for i in range(8)]
    source, out = make_scans(tmp_path / "in", *names), tmp_path / "out"
    monkeypatch.setenv("LEDGER_SECONDS", "0.3")
    killed, told = {}, Told()
    killer = threading.Thread(target=kill_two, args=(ledger, killed))
    killer.start()
    outcomes = on_cluster(source, out, weights, told, force=True)
    killer.join()
    assert not [o for o in outcomes if o.state == "failed"]
    assert len(killed) == 2 and [o.state for o in outcomes] == ["done"] * 8 and told.order == list(range(8))
    assert [o.name for o in outcomes] == names
    starts = Counter(name for what, name, _ in ledger() if what == "start")
    written = Counter(name for what, name, _ in ledger() if what == "written")
    assert set(written.values()) == {1} and len(written) == 8, written
    # Begun again is what a killed worker was in, and what it had finished if nobody had fetched the outcome yet.
    finished = sum(what == "end" and int(pid) in killed for what, _, pid in ledger())
    assert starts.keys() == set(names) and sum(starts.values()) <= 8 + len(killed) + finished, (starts, finished)
    assert {p.name for p in out.rglob("*") if p.is_file()} == {
        f"{i}{e}" for i in range(8) for e in (".nii.gz", ".json")
    }
    ids = {json.loads(p.read_text())["Mrisr"]["Run"] for p in out.rglob("*.json")}
    assert len(ids) == 1


@pytest.mark.slow("starts workers six times: half a minute of CPU")
def test_poison_memory_room_and_another_run(make_scans, weights, tmp_path, ledger):
    names = ["bad.nii", "good.nii", "hog.nii", "other.nii", "poison.nii", "z_full1.nii"]
    source, out = make_scans(tmp_path / "in", *names), tmp_path / "out"
    (source / "bad.nii").write_bytes((source / "good.nii").read_bytes()[:-40])
    told = Told()
    with deliver.claim(out / "other.nii", "another run"):
        outcomes = {o.name: o for o in on_cluster(source, out, weights, told, memory="1500MB")}
    failed = {name: (o.kind, o.exit_code) for name, o in outcomes.items() if o.state == "failed"}
    assert failed == {
        "bad.nii": ("InputError", 3),
        "hog.nii": ("KilledWorker", 5),
        "other.nii": ("OutputError", 4),
        "poison.nii": ("KilledWorker", 5),
    }
    assert "2 workers ended while they had it" in outcomes["poison.nii"].error
    assert "another run is working on it" in outcomes["other.nii"].error
    starts = Counter(name for what, name, _ in ledger() if what == "start")
    # A worker that is taken out gives back what it has begun.
    ended = {name: starts[name] for name in ("poison.nii", "hog.nii")}
    assert all(2 <= count <= 2 + len(told.lines) for count in ended.values()) and sum(ended.values()) <= 5, ended
    assert starts["bad.nii"] == 1
    # Only where worker 0 had it first; a second start may also be that of a scan whose worker died before it was told,
    # or a second one on worker 0 because the other had died.
    assert len(told.lines) <= 1 and 1 <= starts["z_full1.nii"] <= cluster.TRIES
    assert all("No space left" in line and "taken out" in line for line in told.lines)
    assert {p.name for p in out.iterdir()} == {"good.nii", "good.json", "z_full1.nii", "z_full1.json"}
    assert failures.write(out / "failures.json", outcomes.values())
    assert len(json.loads((out / "failures.json").read_text())) == 4
    # What is wrong is mended; the rest is completed here, and what is there stays.
    for name in ("hog.nii", "poison.nii"):
        (source / name).unlink()
    (source / "bad.nii").write_bytes((source / "good.nii").read_bytes())
    again = run.run(
        scans.find(source, out).scans,
        run.Settings(OPTIONS, RUNNING, str(weights), skip_existing=True, folder=out),
    )
    assert Counter(o.state for o in again) == {"done": 2, "skipped": 2}


def test_a_finished_scan_is_not_made_again_by_its_run(make_scans, weights, tmp_path):
    source, out = make_scans(tmp_path / "in", "a.nii"), tmp_path / "out"
    (scan,) = scans.find(source, out).scans
    settings = run.Settings(OPTIONS, RUNNING, str(weights), folder=out, run="r1")
    assert run.one(scan, settings).state == "done"
    before = (out / "a.nii").stat().st_mtime_ns
    again = run.one(scan, settings)
    assert (again.state, again.grids, (out / "a.nii").stat().st_mtime_ns) == ("done", "", before)
    other = run.one(scan, run.Settings(OPTIONS, RUNNING, str(weights), folder=out, run="r2"))
    assert (other.state, other.exit_code) == ("failed", 4) and "exists already" in other.error


def test_a_process_of_the_same_run_is_waited_for(tmp_path, monkeypatch):
    target, order = tmp_path / "a.nii", []

    def second():
        with deliver.claim(target, "r1"):
            order.append("second")

    with deliver.claim(target, "r1"):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.5)
        order.append("first")
        with pytest.raises(OutputError, match="another run"), deliver.claim(target, "r2"):
            raise AssertionError
        monkeypatch.setattr(deliver, "PATIENCE", 0.0)
        with pytest.raises(OutputError, match="another run"), deliver.claim(target, "r1"):
            raise AssertionError
    waiting.join(60)
    assert order == ["first", "second"] and not list(tmp_path.iterdir())


def test_paths_are_the_same_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").touch()
    made = cluster._everywhere(
        run.Settings({"mask": "m/{name}.nii", "bias": "auto"}, {"device": "cuda:1"}, "w.safetensors", std=Path("s"))
    )
    assert made.options == {"mask": str(tmp_path / "m/{name}.nii"), "bias": "auto"}
    assert (made.model, made.std, made.running) == (
        str(tmp_path / "w.safetensors"), tmp_path / "s", {"device": "cuda"},
    )  # fmt: skip
    assert cluster._everywhere(run.Settings({}, {}, "base")).model == "base"
    one, other = (scans.Scan(Path(n), Path("o/a.nii"), n, (Path(n),)) for n in ("a.nii", "b.nii"))
    scan = cluster._absolute(replace(one, others=(other,)))
    assert (scan.source, scan.target, scan.name) == (tmp_path / "a.nii", tmp_path / "o/a.nii", "a.nii")
    assert (scan.others[0].source, scan.others[0].files) == (tmp_path / "b.nii", (tmp_path / "b.nii",))


WRONG = {
    "where": (["--cluster", "pbs"], 2, "expected local, slurm or tcp://HOST:PORT, found 'pbs'"),
    "alone": (["--workers", 2], 2, "--workers: needs --cluster"),
    "sbatch": (["--cluster", "local", "--sbatch", "-p gpu"], 2, "--sbatch: is for --cluster slurm"),
    "there": (["--cluster", "tcp://127.0.0.1:1", "--workers", 2], 2, "has its workers already"),
    "memory": (["--cluster", "local", "--worker-memory", "much"], 2, "expected a size such as"),
    "record": (["--cluster", "local", "--no-sidecar"], 2, "leave --no-sidecar out"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_options(what, make_scans, weights, tmp_path, capsys):
    words, code, said = WRONG[what]
    make_scans(tmp_path / "in", "a.nii", "b.nii")
    given = ["upscale", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", weights, *words]
    assert main([str(w) for w in given]) == code and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_file_needs_no_cluster(make_scans, tmp_path, capsys):
    make_scans(tmp_path / "in", "a.nii")
    given = ["upscale", "-i", tmp_path / "in/a.nii", "-o", tmp_path / "o.nii", "--cluster", "local"]
    assert main([str(w) for w in given]) == 2 and "--cluster: is for several scans" in capsys.readouterr().err


def test_no_scheduler_there(make_scans, weights, tmp_path, monkeypatch):
    import distributed

    def refused(*_, **__):
        raise OSError("Connection refused")

    monkeypatch.setattr(distributed, "Client", refused)
    source = make_scans(tmp_path / "in", "a.nii")
    work = scans.find(source, tmp_path / "out")
    with pytest.raises(BackendError, match=r"no scheduler answers at tcp://127.0.0.1:1 \(Connection refused\)"):
        cluster.run(work.scans, run.Settings(OPTIONS, RUNNING), launch.Cluster("tcp://127.0.0.1:1"))
    assert not list((tmp_path / "out").rglob("*.*"))


def test_words_for_sbatch_are_lines():
    from mrisr.cli.cluster import _lines

    assert _lines(("-p", "gpu", "--gres=gpu:1", "--time", "4:0")) == ("-p gpu", "--gres=gpu:1", "--time 4:0")
    assert launch._variable("distributed.worker.memory.spill") == "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL"


def test_masks_by_pattern(make_scans, weights, tmp_path, capsys):
    import nibabel as nib

    source, out = make_scans(tmp_path / "in", "s/a.nii", "s/b.nii"), tmp_path / "out"
    mask = np.zeros((16, 18, 14), np.uint8)
    mask[4:12, 4:12, 4:12] = 1
    (tmp_path / "masks").mkdir()
    nib.save(nib.Nifti1Image(mask, np.diag([-2.0, 2, 2, 1])), tmp_path / "masks/a.nii")
    words = ["upscale", "-i", source, "-o", out, "--model", weights, "--voxel-size", 2, "--threads", 1]
    code = main([str(w) for w in [*words, "--mask", f"{tmp_path}/masks/{{stem}}.nii"]])
    (failure,) = json.loads((out / "failures.json").read_text())
    assert code == 9 and failure["Scan"] == "s/b.nii" and "has no mask; expected" in failure["Error"]
    made = nib.load(out / "s/a.nii").get_fdata()
    assert made[8, 8, 8] != 0 and not made[mask == 0].any()
    held = provenance.record_of(out / "s/a.nii")["Options"]["mask"]
    assert held["Name"] == "a.nii" and len(held["SHA256"]) == 64
    capsys.readouterr()
    assert main([str(w) for w in [*words, "--mask", tmp_path / "masks/a.nii", "--force"]]) == 2
    assert "for several give a pattern that holds {name} or {stem}" in capsys.readouterr().err
