"""What the operating system refuses is one line that names the file the user knows, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import mrisr
from mrisr.errors import InputError, ModelError
from mrisr.train import teacher

LONG = "a" * 300
FULL = OSError(errno.ENOSPC, "No space left on device")
# Every command with every file that it reads, as {x}: what it names cannot be looked at.
READERS = {
    "upscale input": "upscale -i {x}.nii -o o.nii --model {weights}",
    "upscale model": "upscale -i {scan} -o o.nii --model {x}",
    "upscale coils": "upscale -i {scan} -o o.nii --model {weights} --gradnl {x}.grad",
    "upscale displacement": "upscale -i {scan} -o o.nii --model {weights} --gradnl {x}.nii",
    "upscale bias": "upscale -i {scan} -o o.nii --model {weights} --bias {x}.nii",
    "correct input": "correct -i {x}.nii -o o.nii --bias auto",
    "correct coils": "correct -i {scan} -o o.nii --gradnl {x}.grad",
    "correct t2w": "correct -i {scan} -o o.nii --bias auto --t2w {x}.nii",
    "simulate input": "simulate -i {x}.nii -o o.nii --like 7T",
    "simulate coils": "simulate -i {scan} -o o.nii --like 7T --gradnl {x}.grad",
    "evaluate input": "evaluate {x} -o o",
    "evaluate model": "evaluate {scan} -o o --model {x}",
    "evaluate training": "evaluate {scan} -o o --methods linear --train-on {x}",
    "pack": "pack {x} -o o.pack",
    "train config": "train --config {x} --out o --data {scan}",
    "train data": "train --config tiny --out o --data {x}",
    "train init": "train --config tiny --out o --data {scan} --init {x}",
    "distill teacher": "distill --config distill-tiny --out o --data {scan} --teacher {x}",
    "export model": "export -o o --model {x}",
    "demo model": "demo -o o --model {x}",
}
WRITERS = {
    "upscale": "upscale -i {scan} -o {x}.nii --model {weights}",
    "upscale info": "upscale -i {scan} -o o.nii --info {x}.json --model {weights}",
    "correct": "correct -i {scan} -o {x}.nii --bias auto",
    "simulate": "simulate -i {scan} -o {x}.nii --like 7T",
    "evaluate": "evaluate {scan} -o {x}",
    "pack": "pack {scan} -o {x}.pack",
    "train": "train --config tiny --out {x} --data {scan}",
    "export": "export -o {x} --model {weights}",
    "demo": "demo -o {x}",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(teacher, "PROBES", 12)  # training looks at its data first, which need not be exact here
    return folder


def told_in_one_line(end, codes=(2, 3, 4, 6, 8)):
    assert end.code in codes, end.err
    assert len(end.errors) == 1 and "Traceback" not in end.err, end.err
    return end.errors[0]


@pytest.mark.parametrize("what", READERS)
def test_an_input_that_cannot_be_looked_at(what, here, scan, weights, mrisr_command):
    """A name beyond what the system takes: looking at it fails as it does in a folder that one may not enter."""
    words = READERS[what].format(x=here / LONG, scan=scan, weights=weights).split()
    line = told_in_one_line(mrisr_command(*words))
    assert LONG[:50] in line and "File name too long" in line
    assert not [p for p in here.iterdir() if p.name.startswith((".", "o."))]


@pytest.mark.parametrize("what", WRITERS)
def test_an_output_that_cannot_be_made(what, here, scan, weights, mrisr_command):
    words = WRITERS[what].format(x=here / LONG, scan=scan, weights=weights).split()
    line = told_in_one_line(mrisr_command(*words), (4,))
    assert LONG[:50] in line and "File name too long" in line
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mgz"])
def test_a_name_of_255_bytes_is_as_good_as_any(ending, here, scan, weights, mrisr_command):
    name = "b" * (255 - len(ending)) + ending
    info = "i" * 250 + ".json"
    beside = name.removesuffix(ending) + ".json"
    words = ("upscale", "-i", scan, "-o", name, "--info", info, "--model", weights, "--voxel-size", "1.8")
    made = [name, info]
    if len(beside) > 255:  # the sidecar's ending is longer than the image's
        line = told_in_one_line(mrisr_command(*words[:2], "none.nii", *words[3:]), (4,))  # before the input is read
        assert beside in line and "File name too long" in line and "--no-sidecar" in line
        assert os.listdir(here) == []
        words = (*words, "--no-sidecar")
    else:
        made.append(beside)
    end = mrisr_command(*words)
    assert end.code == 0, end.err
    assert sorted(os.listdir(here)) == sorted(made) and nib.load(here / name).shape[0] > 24


@pytest.mark.slow("every graph is exported and compared")
def test_a_bundle_s_name_of_255_bytes_is_as_good_as_any(here, weights, mrisr_command):
    assert mrisr_command("export", "-o", "c" * 255, "--model", weights).code in (0, 7)
    assert set(os.listdir(here)) <= {"c" * 255}


def denied() -> list[str]:
    """What starts a process that permissions hold for, where the tests run as root; or a reason to skip."""
    if os.geteuid() != 0:
        return []
    tool = shutil.which("setpriv")
    if tool is None:
        pytest.skip("permissions do not hold for root, and setpriv (util-linux) is not here to drop its privileges")
    drop = "-dac_override,-dac_read_search"
    return [tool, f"--bounding-set={drop}", f"--inh-caps={drop}"]


# One command after the other, and how each ended; what it says stands between the lines of its name and its code.
IN_TURN = """
import sys
from mrisr.cli.main import main
for line in sys.argv[1:]:
    print("begins:", line.split()[0], file=sys.stderr)
    print("ends:", main(line.split()), file=sys.stderr)
"""
CLOSED = {"upscale input": 3, "upscale model": 6, "upscale coils": 3, "evaluate input": 3, "train data": 8}


def test_a_folder_that_one_may_not_enter(here, scan, weights, tmp_path):
    """In one process that permissions hold for."""
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    lines = [READERS[what].format(x=closed / "a", scan=scan, weights=weights) for what in CLOSED]
    try:
        done = subprocess.run(
            [*denied(), sys.executable, "-c", IN_TURN, *lines], capture_output=True, text=True, cwd=here
        )
    finally:
        closed.chmod(0o700)
    said = done.stderr.split("begins: ")[1:]
    assert len(said) == len(CLOSED) and "Traceback" not in done.stderr, done.stderr
    for (what, code), text in zip(CLOSED.items(), said):
        *_, error, end = text.splitlines()
        assert end in (f"ends: {code}", "ends: 3"), (what, text)
        assert "Permission denied" in error and str(closed) in error, (what, text)
    assert not [path for path in here.iterdir() if path.name.startswith((".", "o."))]


def test_the_python_interface_says_the_same(here):
    with pytest.raises(InputError, match="cannot be opened .File name too long."):
        mrisr.upscale(LONG + ".nii")
    with pytest.raises(ModelError, match="cannot be opened .File name too long."):
        mrisr.load_model(LONG)


def test_a_full_disk_names_the_file_that_was_asked_for(here, scan, weights, mrisr_command, monkeypatch):
    def full(image, path):
        Path(path).write_bytes(b"part")
        raise FULL

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", full)
    for name in ("o.nii", here / "o.nii", "../here/o.nii"):
        line = told_in_one_line(mrisr_command("upscale", "-i", scan, "-o", name, "--model", weights), (4,))
        found, _, what = line.partition("; ")
        assert found == f"mrisr: error: {name}: cannot be written (No space left on device)"
        assert what == "make room there, or choose another place"
        assert list(here.iterdir()) == []


def test_a_limit_on_file_size_is_met_for_real(here, scan, weights):
    """The kernel refuses to write on, as it does on a full disk."""
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (65536, 65536)); from mrisr.cli.main import entry; entry()"
    )
    words = ["upscale", "-i", str(scan), "-o", "o.nii", "--model", str(weights), "--voxel-size", "1"]
    env = {**os.environ, "MRISR_CACHE": "off"}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=here, env=env)
    assert done.returncode == 4, done.stderr
    assert done.stderr.splitlines()[-1].startswith("mrisr: error: o.nii: cannot be written (File too large); make room")
    assert list(here.iterdir()) == []


SITE = """
import os, pwd, tempfile
def nobody(*args): raise KeyError("getpwuid(): uid not found")
pwd.getpwuid = nobody
if os.environ.get("NO_TEMPORARY"):
    def none(): raise FileNotFoundError(2, "No usable temporary directory found")
    tempfile._get_default_tempdir = none
"""


AGAIN = pytest.mark.slow("the other engine in a process of its own")


@pytest.mark.parametrize(
    ("temporary", "engine"),
    [
        pytest.param(True, "torch", id="TMPDIR-torch"),
        pytest.param(False, "openvino", id="no temporary folder-openvino"),
        pytest.param(True, "openvino", id="TMPDIR-openvino", marks=AGAIN),
        pytest.param(False, "torch", id="no temporary folder-torch", marks=AGAIN),
    ],
)
def test_no_home_no_entry_in_the_password_file_no_temporary_folder(engine, temporary, here, scan, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    gone = ("HOME", "XDG_CACHE_HOME", "MRISR_CACHE", "LOGNAME", "USER", "LNAME", "USERNAME")
    env = {k: v for k, v in os.environ.items() if k not in gone}
    env |= {"PYTHONPATH": str(tmp_path), "NO_TEMPORARY": "" if temporary else "1"}
    words = ["upscale", "-i", str(scan), "-o", "o.nii", "--engine", engine, "--voxel-size", "1.5", "--quiet"]
    command = [sys.executable, "-m", "mrisr.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert sorted(os.listdir(here)) == ["o.json", "o.nii"]


@pytest.mark.parametrize("cache", ["/proc/nowhere", "{file}/below"])
def test_a_cache_that_cannot_be_used_is_no_error(cache, here, scan, tmp_path, mrisr_command, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MRISR_CACHE", cache.format(file=tmp_path / "file"))
    end = mrisr_command("upscale", "-i", scan, "-o", "o.nii", "--voxel-size", "1.5", "--engine", "openvino", "--quiet")
    assert (end.code, end.err) == (0, "")


SOME = pytest.mark.slow("a process of its own, as that with all three closed")


@pytest.mark.parametrize(
    "closed", [pytest.param("2>&-", marks=SOME), pytest.param(">&- 2>&-", marks=SOME), "<&- >&- 2>&-"]
)
def test_closed_streams(closed, here, scan, weights):
    line = f"{sys.executable} -m mrisr.cli.main upscale -i {scan} -o o.nii --model {weights} --voxel-size 1.8 {closed}"
    assert subprocess.run(["sh", "-c", line], cwd=here).returncode == 0
    assert np.isfinite(nib.load(here / "o.nii").get_fdata()).all()
    line = f"{sys.executable} -m mrisr.cli.main upscale -i none.nii -o p.nii {closed}"
    assert subprocess.run(["sh", "-c", line], cwd=here).returncode == 3
    assert sorted(os.listdir(here)) == ["o.json", "o.nii"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_place_for_what_is_said(here):
    words = [sys.executable, "-m", "mrisr.cli.main", "doctor"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 4
        assert (
            done.stderr == "mrisr: error: output: No space left on device; make room there, or choose another place\n"
        )
        assert subprocess.run([*words, "--nonsense"], stdout=full, stderr=full).returncode == 2


def test_a_bug_that_is_an_oserror_is_still_a_bug(mrisr_command, monkeypatch):
    from mrisr.cli import doctor

    def broken():
        raise OSError("a library that does not load")

    monkeypatch.setattr(doctor, "examine", broken)
    end = mrisr_command("doctor")
    assert end.code == 1 and "this is a bug" in end.err


def test_voxels_that_no_head_has(here, mrisr_command, weights):
    data = np.random.default_rng(0).random((8, 9, 7)).astype(np.float32)
    for size, words in ((400.0, "voxels of 1 x 400 x 1 mm"), (99.0, None)):
        nib.save(nib.Nifti1Image(data, np.diag([1, size, 1, 1])), here / "a.nii")
        end = mrisr_command("upscale", "-i", "a.nii", "-o", "o.nii", "--model", weights, "--voxel-size", "50")
        if words is None:
            assert end.code == 0, end.err
        else:
            line = told_in_one_line(end, (3,))
            assert words in line and "which no scan of a head has; set the true voxel size (or its unit)" in line
    nib.save(nib.Nifti1Image(np.tile(data, (8, 1, 1))[:60], np.diag([90, 1, 1, 1])), here / "b.nii")
    line = told_in_one_line(mrisr_command("upscale", "-i", "b.nii", "-o", "p.nii", "--model", weights), (3,))
    assert "field of view of 5400 x 9 x 7 mm" in line


def test_a_name_in_letters_of_both_kinds(here, scan, weights, mrisr_command):
    shutil.copy(scan, "a.Nii.gz")
    line = told_in_one_line(mrisr_command("upscale", "-i", "a.Nii.gz", "-o", "o.nii", "--model", weights), (3,))
    assert "a.Nii.gz: ends in .Nii.gz; rename it to end in .nii.gz" in line
    nib.save(nib.Nifti1Pair(np.ones((4, 5, 6), np.float32), np.eye(4)), "b.img")
    os.rename("b.img", "b.IMG")
    line = told_in_one_line(mrisr_command("upscale", "-i", "b.hdr", "-o", "o.nii", "--model", weights), (3,))
    assert "b.hdr: its other half b.img is missing; rename b.IMG to that" in line


def test_rates_that_somebody_else_wrote(tmp_path, monkeypatch):
    from mrisr.cli.forecast import Forecast

    monkeypatch.setenv("MRISR_CACHE", str(tmp_path))
    key = Forecast("a").key
    for held in ("[" * 100_000, "{", f'{{"{key}": 1{"0" * 400}}}', f'{{"{key}": NaN}}', f'{{"{key}": -2.0}}'):
        (tmp_path / "rates.json").write_text(held)
        assert Forecast("a").measurement is None


def test_names_that_are_no_utf8(here, scan, weights, mrisr_command):
    """As files from older systems have them: the record of the run cannot hold such a letter."""
    source, target = os.fsdecode(b"s\xe4.nii.gz"), os.fsdecode(b"o\xf6.nii")
    try:
        shutil.copy(scan, source)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    end = mrisr_command("upscale", "-i", source, "-o", target, "--model", weights, "--log", "a.log", "--info", "i.json")
    assert end.code == 0, end.err
    assert "s?.nii.gz" in Path(os.fsdecode(b"o\xf6.json")).read_text() and Path(target).stat().st_size > 352


def test_a_log_that_is_full_is_named_and_leaves_nothing(here, scan, weights, mrisr_command):
    words = ("upscale", "-i", scan, "-o", "o.nii", "--model", weights, "--log", "/dev/full")
    line = told_in_one_line(mrisr_command(*words), (4,))
    assert "--log: /dev/full cannot be written (No space left on device); make room there" in line
    assert os.listdir(here) == []


def test_a_working_folder_that_is_gone(here, scan, weights, mrisr_command):
    here.rmdir()
    line = told_in_one_line(mrisr_command("upscale", "-i", scan, "-o", "/tmp/o.nii", "--model", weights), (3,))
    assert "working folder: No such file or directory; change into one that is there" in line


@pytest.mark.parametrize("name", ["", "-"])
def test_an_output_without_a_name(name, here, scan, weights, mrisr_command):
    line = told_in_one_line(mrisr_command("upscale", "-i", scan, "-o", name, "--model", weights), (2,))
    assert f"output: expected the name of a file or folder, found {name!r}" in line and os.listdir(here) == []


def test_what_terminals_act_on_is_not_printed(here, mrisr_command):
    line = told_in_one_line(mrisr_command("upscale", "-i", "a\x1b]0;b\x07.nii", "-o", "o.nii"), (3,))
    assert "a?]0;b?.nii: no such file" in line
