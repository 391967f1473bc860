"""A batch: what is written, what is left alone, what a failure does."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading

import nibabel as nib
import numpy as np
import pytest

import mrisr
from mrisr.batch import deliver, failures, provenance, run, scans
from mrisr.cli.main import main
from mrisr.errors import ModelError, OutputError, UsageError

OPTIONS = {"voxel_size": 1.5, "steps": 1, "samples": 1}


def batch(source, out, weights, **changes):
    work = scans.find(source, out)
    how = {"running": {"threads": 1}, "model": str(weights), "folder": out, "options": OPTIONS} | changes
    return run.run(work.scans, run.Settings(**how))


def states(outcomes):
    return {o.name: o.state for o in outcomes}


def listing(folder):
    """name -> (bytes, time of change): what a run that writes nothing leaves as it is."""
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def test_a_batch_is_the_python_call_and_its_sidecars(make_scans, weights, tmp_path):
    source, out = make_scans(tmp_path / "in", "a.nii.gz", "s/b.nii", "c.mgz"), tmp_path / "out"
    (source / "a.json").write_text(json.dumps({"SliceThickness": 2.5, "PatientName": "X"}))
    done = batch(source, out, weights)
    assert set(states(done).values()) == {"done"} and all(
        o.seconds.keys() == {"read", "compute", "write"} for o in done
    )
    names = {"a.nii.gz", "a.json", "s/b.nii", "s/b.json", "c.mgz", "c.json"}
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == names
    for name in ("a.nii.gz", "s/b.nii", "c.mgz"):
        expected = mrisr.upscale(str(source / name), model=str(weights), threads=1, **OPTIONS)
        assert np.array_equal(nib.load(out / name).get_fdata(), expected.get_fdata())
    assert nib.load(out / "a.nii.gz").header["descrip"].item().decode() == provenance.description("tiny.safetensors")
    beside = json.loads((out / "s/b.json").read_text())
    own = beside["Mrisr"]
    assert own["Input"] == {"Name": "s/b.nii", "SHA256": provenance.digest([source / "s/b.nii"])}
    assert own["WeightsSHA256"] == provenance.digest([weights]) and own["Model"] == "tiny.safetensors"
    assert own["Options"]["voxel_size"] == 1.5 and own["Bands"][0]["SynthesisedToCyclesPerMM"] == pytest.approx(1 / 3)
    assert json.loads((out / "a.json").read_text())["Mrisr"]["Input"]["Facts"] == {"SliceThickness": 2.5}
    assert not re.search(r'"/|tmp|PatientName', (out / "s/b.json").read_text() + (out / "a.json").read_text())


def test_skip_existing_is_by_content(make_scans, weights, tmp_path):
    source, out = make_scans(tmp_path / "in", "a.nii", "b.nii"), tmp_path / "out"
    batch(source, out, weights, skip_existing=True)
    before = listing(out)
    assert set(states(batch(source, out, weights, skip_existing=True)).values()) == {"skipped"}
    assert listing(out) == before

    make_scans(source, "x.nii", "x2.nii", "b.nii")  # b anew, with other noise
    for name in ("x.nii", "x2.nii"):
        (source / name).unlink()
    assert states(batch(source, out, weights, skip_existing=True)) == {"a.nii": "skipped", "b.nii": "done"}
    (source / "a.json").write_text('{"SliceThickness": 3}')  # the same voxels, acquired otherwise
    assert states(batch(source, out, weights, skip_existing=True)) == {"a.nii": "done", "b.nii": "skipped"}
    other = {**OPTIONS, "voxel_size": 1.8}
    assert set(states(batch(source, out, weights, options=other, skip_existing=True)).values()) == {"done"}
    assert nib.load(out / "a.nii").header.get_zooms()[0] == pytest.approx(1.8)
    (out / "a.nii").write_bytes(b"cut off")
    assert states(batch(source, out, weights, options=other, skip_existing=True))["a.nii"] == "done"


def test_what_somebody_else_made_is_not_replaced(make_scans, weights, tmp_path):
    source, out = make_scans(tmp_path / "in", "a.nii"), tmp_path / "out"
    out.mkdir()
    (out / "a.nii").write_text("mine")
    for how in ({}, {"skip_existing": True}):
        (failed,) = batch(source, out, weights, **how)
        assert (failed.state, failed.exit_code) == ("failed", 4) and "exists already" in failed.error
    assert listing(out).keys() == {"a.nii"} and (out / "a.nii").read_text() == "mine"
    assert states(batch(source, out, weights, force=True)) == {"a.nii": "done"}


def test_no_option_replaces_an_original(make_scans, weights, tmp_path):
    """Spreads, pictures and records have the names of the results, which are those of the scans."""
    source = make_scans(tmp_path / "in", "a.nii")
    (source / "a.json").write_text('{"EchoTime": 0.1}')
    before = listing(source)
    for how in ({"std": source, "options": {**OPTIONS, "samples": 2}}, {"info": source}):
        for again in ({"force": True}, {"skip_existing": True}):
            (failed,) = batch(source, tmp_path / "out", weights, **how, **again)
            assert failed.exit_code == 4 and "is a file of the original a.nii" in failed.error
    assert listing(source) == before


def test_pipes_and_links_to_nothing_are_failed_by_name(make_scans, weights, tmp_path):
    source = make_scans(tmp_path / "in", "a.nii")
    os.mkfifo(source / "p.nii.gz")  # which nobody writes: opening it would wait without end
    (source / "q.nii").symlink_to("annex.nii")
    outcomes = batch(source, tmp_path / "out", weights)
    assert states(outcomes) == {"a.nii": "done", "p.nii.gz": "failed", "q.nii": "failed"}
    assert outcomes[1].exit_code == outcomes[2].exit_code == 3
    assert "is not a regular file" in outcomes[1].error and "a link to a file that is not there" in outcomes[2].error


def test_a_folder_that_cannot_be_written_is_said_once(make_scans, weights, tmp_path, capsys, monkeypatch):
    make_scans(tmp_path / "in", "a.nii", "b.nii")
    (tmp_path / "file").write_text("")
    words = ["upscale", "-i", str(tmp_path / "in"), "--model", str(weights), "-o"]
    assert main([*words, str(tmp_path / "file")]) == 4
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith("file: is a file; give the name of a folder for the results")
    )
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main([*words, str(tmp_path / "a" / "b")]) == 4
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(f"{tmp_path}: no permission to write; choose another output")


def test_a_claim_that_another_user_left_is_no_obstacle(tmp_path, monkeypatch):
    real, target = os.open, tmp_path / "a.nii"
    path = deliver._hidden_name(target, "claim")
    path.touch()

    def opened(name, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", opened)
    with deliver.claim(target), pytest.raises(OutputError, match="another run"), deliver.claim(target):
        raise AssertionError
    assert not path.exists()
    with pytest.raises(OutputError, match="Permission denied"), deliver.claim(target):
        raise AssertionError


@pytest.mark.parametrize("held", ['{"mine": 1}', "[1", '[{"Name": 1}]'])
def test_a_failures_json_of_somebody_else_stays(held, make_scans, weights, tmp_path, capsys):
    make_scans(tmp_path / "in", "a.nii")
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "failures.json"
    mine.write_text(held)
    words = ["upscale", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", weights, "--voxel-size", 1.8]
    assert main(list(map(str, words))) == 4
    assert "is no list of failures that mrisr has written" in capsys.readouterr().err
    assert listing(tmp_path / "out").keys() == {"failures.json"} and mine.read_text() == held
    assert main([*map(str, words), "--force"]) == 0 and not mine.exists()


def test_a_failed_scan_does_not_stop_the_rest(make_scans, weights, tmp_path):
    source, out = make_scans(tmp_path / "in", "a.nii", "b.nii", "c.nii"), tmp_path / "out"
    (source / "b.nii").write_bytes((source / "a.nii").read_bytes()[:-50])
    outcomes = batch(source, out, weights)
    assert states(outcomes) == {"a.nii": "done", "b.nii": "failed", "c.nii": "done"}
    assert failures.write(out / "failures.json", outcomes)
    (failure,) = json.loads((out / "failures.json").read_text())
    assert (failure["Scan"], failure["Kind"], failure["ExitCode"]) == ("b.nii", "InputError", 3)
    assert "truncated or damaged" in failure["Error"] and str(tmp_path) not in failure["Error"]
    shutil.copy(source / "a.nii", source / "b.nii")
    assert not failures.write(out / "failures.json", batch(source, out, weights, skip_existing=True))
    assert not (out / "failures.json").exists()


def test_an_error_in_the_network_is_of_one_scan(make_scans, weights, tmp_path, monkeypatch):
    source, out = make_scans(tmp_path / "in", "a.nii", "b.nii", "c.nii"), tmp_path / "out"
    real = mrisr.upscale

    def upscale(volume, **how):
        if volume.name.endswith("b.nii"):
            raise MemoryError
        return real(volume, **how)

    monkeypatch.setattr(mrisr, "upscale", upscale)
    outcomes = batch(source, out, weights)
    assert states(outcomes) == {"a.nii": "done", "b.nii": "failed", "c.nii": "done"}
    assert (outcomes[1].kind, outcomes[1].exit_code) == ("MemoryError", 5)
    assert not list(out.glob(".*")) and not (out / "b.json").exists()


def test_a_full_disk_leaves_nothing_half_written(make_scans, weights, tmp_path, monkeypatch):
    source, out = make_scans(tmp_path / "in", "a.nii", "b.nii"), tmp_path / "out"
    real = provenance.as_text

    def full(value):
        if value.get("Sources") == ["a.nii"]:
            raise OSError(28, "No space left on device")
        return real(value)

    monkeypatch.setattr(provenance, "as_text", full)
    outcomes = batch(source, out, weights)
    assert states(outcomes) == {"a.nii": "failed", "b.nii": "done"}
    assert outcomes[0].exit_code == 4 and "No space left" in outcomes[0].error
    assert {p.name for p in out.iterdir()} == {"b.nii", "b.json"}


def test_options_that_none_can_have_end_the_run(make_scans, weights, tmp_path):
    source, out = make_scans(tmp_path / "in", "a.nii", "b.nii"), tmp_path / "out"
    with pytest.raises(UsageError, match="ensemble"):
        batch(source, out, weights, options={"ensemble": 3})
    with pytest.raises(ModelError):
        batch(source, out, tmp_path / "no.safetensors")
    assert not list(out.rglob("*.nii")) and not list(out.rglob(".*"))


def test_int16_is_off_by_half_a_step(make_scans, weights, tmp_path):
    source = make_scans(tmp_path / "in", "a.nii")
    batch(source, tmp_path / "f", weights)
    batch(source, tmp_path / "i", weights, dtype="int16")
    full, small = (nib.load(tmp_path / d / "a.nii") for d in "fi")
    step = np.ptp(full.get_fdata()) / 65535
    assert small.get_data_dtype() == np.int16 and np.abs(small.get_fdata() - full.get_fdata()).max() <= 0.51 * step
    assert (tmp_path / "i/a.nii").stat().st_size < 0.51 * (tmp_path / "f/a.nii").stat().st_size
    (failed,) = batch(make_scans(tmp_path / "m", "a.mgz"), tmp_path / "n", weights, dtype="int16")
    assert failed.exit_code == 4 and "MGH has no slope" in failed.error


def test_warnings_stay_with_their_scan(make_scans, weights, tmp_path):
    """The next scan is read while this one is computed; what is said of it is its own."""
    source, out = make_scans(tmp_path / "in", "a.nii", "b.nii", "c.nii"), tmp_path / "out"
    image = nib.load(source / "b.nii")
    image.set_qform(np.diag([-2.0, 2, 2, 1]), 1)
    moved = np.diag([-2.0, 2, 2, 1])
    moved[:3, 3] = 5
    image.set_sform(moved, 1)
    nib.save(image, source / "b2.nii")
    (source / "b2.nii").replace(source / "b.nii")
    found = {o.name: o.warnings for o in batch(source, out, weights)}
    assert found["a.nii"] == found["c.nii"] == [] and len(found["b.nii"]) == 1
    (said,) = json.loads((out / "b.json").read_text())["Mrisr"]["Warnings"]
    assert said.startswith("b.nii: sform and qform differ")


def test_reading_and_writing_overlap_with_the_network(make_scans, weights, tmp_path, monkeypatch):
    """While one is computed, the next is read and the last is written: shown by events that wait for each other."""
    source, out = make_scans(tmp_path / "in", "a.nii", "b.nii", "c.nii"), tmp_path / "out"
    read_c, wrote_a = threading.Event(), threading.Event()
    real_read, real_write, real_upscale = run.nifti.read, run.write_image, mrisr.upscale

    def read(path, **how):
        volume = real_read(path, **how)
        if path.name == "c.nii":
            read_c.set()
        return volume

    def write(volume, target, *rest, **how):
        real_write(volume, target, *rest, **how)
        if target.name == "a.nii":
            wrote_a.set()

    def upscale(volume, **how):
        if volume.name.endswith("b.nii"):
            assert read_c.wait(60) and wrote_a.wait(60)
        return real_upscale(volume, **how)

    monkeypatch.setattr(run.nifti, "read", read)
    monkeypatch.setattr(run, "write_image", write)
    monkeypatch.setattr(mrisr, "upscale", upscale)
    assert set(states(batch(source, out, weights)).values()) == {"done"}
    # With a budget to keep, nothing else is in memory beside the network.
    read_c.clear(), wrote_a.clear()
    monkeypatch.setattr(mrisr, "upscale", real_upscale)
    order = []
    monkeypatch.setattr(run, "write_image", lambda *a, **k: (order.append(a[1].name), real_write(*a, **k)))
    monkeypatch.setattr(run.nifti, "read", lambda path, **how: (order.append(path.name), real_read(path, **how))[1])
    batch(source, tmp_path / "o2", weights, running={"threads": 1, "memory": "3GB"})
    assert order == ["a.nii", "b.nii", "a.nii", "c.nii", "b.nii", "c.nii"]


def test_two_runs_do_not_write_one_scan(make_scans, weights, tmp_path):
    source, out = make_scans(tmp_path / "in", "a.nii", "b.nii"), tmp_path / "out"
    with deliver.claim(out / "a.nii"):
        outcomes = batch(source, out, weights, skip_existing=True)
        assert states(outcomes) == {"a.nii": "failed", "b.nii": "done"}
        assert "another run is working on it" in outcomes[0].error
        with pytest.raises(OutputError, match="another run"), deliver.claim(out / "a.nii"):
            raise AssertionError
    assert states(batch(source, out, weights, skip_existing=True)) == {"a.nii": "done", "b.nii": "skipped"}
    assert not list(out.glob(".*"))


def test_what_a_killed_run_left_is_removed(make_scans, weights, tmp_path):
    source, out = make_scans(tmp_path / "in", "a.nii"), tmp_path / "out"
    for what, folder in (("part", True), ("claim", False)):
        left = deliver._hidden_name(out / "a.nii", what)
        left.mkdir(parents=True) if folder else left.write_text("")
    (deliver._hidden_name(out / "a.nii", "part") / "a.nii").write_text("half")
    assert states(batch(source, out, weights, skip_existing=True)) == {"a.nii": "done"}
    assert {p.name for p in out.iterdir()} == {"a.nii", "a.json"}


def test_records_pictures_and_spreads_are_mirrored(make_scans, weights, tmp_path):
    source, out = make_scans(tmp_path / "in", "s/a.nii.gz"), tmp_path / "out"
    beside = {name: tmp_path / name for name in ("std", "preview", "info")}
    batch(source, out, weights, options={**OPTIONS, "samples": 2}, **beside)
    assert nib.load(tmp_path / "std/s/a.nii.gz").get_fdata().max() > 0
    assert (tmp_path / "preview/s/a.png").stat().st_size > 1000
    assert json.loads((tmp_path / "info/s/a.json").read_text())["samples"] == 2
