"""kill -9 after every rename of a run, one after the other; then the same line completes what is missing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# One process that has everything loaded, and a child of it per rename, which ends itself there.
STOPPED = """
import os, signal, sys
from mrisr.cli.main import main
import mrisr.api, mrisr.batch.run

real, left = os.replace, 0

def replace(*given, **how):
    global left
    real(*given, **how)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace
for k in range(1, 40):
    if (child := os.fork()) == 0:
        left = k
        os._exit(main([word.replace("@", str(k)) for word in sys.argv[1:]]))
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        print(k, os.WEXITSTATUS(status))
        break
"""

LINES = {
    "a series": ("-i", "study", "--series", "5", "-o", "@/out", "--report", "@/report"),
    "series": ("-i", "study", "--all-series", "-o", "@/out"),
    "an image": ("-i", "a.nii", "-o", "@/out.nii", "--report", "@/report"),
    "images": ("-i", "scans", "-o", "@/out", "--report", "@/report"),
}


def held(folder) -> dict[str, bytes | None]:
    """name -> bytes; None for what has a time in it, or hidden names (of one scan, they are left)."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and "/.mrisr-" not in f"/{name}":
            found[name] = None if path.suffix in (".json", ".html") else path.read_bytes()
    return found


OFTEN = ("a series", "images")
REST = pytest.mark.slow("a process per rename; by the same code as the cases that `make test` has")


@pytest.mark.parametrize("what", [what if what in OFTEN else pytest.param(what, marks=REST) for what in LINES])
def test_the_same_line_completes_it(what, study, scan, weights, tmp_path, monkeypatch, mrisr_command):
    import nibabel as nib

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRISR_CACHE", "off")
    (tmp_path / "scans").mkdir()
    for name in ("a.nii", "scans/a.nii"):
        nib.save(nib.load(scan), name)
    line = ["upscale", *LINES[what], "--voxel-size", "2", "--model", str(weights)]
    line += ["--engine", "torch", "--threads", "1"]
    for k in range(1, 40):
        (tmp_path / str(k)).mkdir()
    said = subprocess.run([sys.executable, "-c", STOPPED, *line, "--quiet"], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    last, code = map(int, said.stdout.split())
    assert code == 0 and last > 2, said.stderr
    whole = held(tmp_path / str(last))
    for k in range(1, last):
        here = [word.replace("@", str(k)) for word in line]
        there = os.path.lexists(f"{k}/out.nii") or os.path.lexists(f"{k}/out")
        if what in ("a series", "an image") and not there:
            end = mrisr_command(*here)  # nothing has been made: no option is needed
            assert end.code == 0, (k, end.err)
        end = mrisr_command(*here, "--skip-existing")
        assert end.code == 0, (k, end.err)
        assert held(tmp_path / str(k)) == whole, k
        if what in ("series", "images"):  # what is left of a page in a report, whose names nobody claims, stays
            assert not [path for path in (tmp_path / str(k) / "out").rglob(".*")], k
    assert "skipped" in mrisr_command(*here, "--skip-existing").err
