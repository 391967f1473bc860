"""`--info` beside a sidecar: one file of that name, and nobody else's is lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def call(scan, weights, mrisr_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(scan, "a.nii.gz")
    (tmp_path / "scans").mkdir()
    shutil.copy(scan, "scans/a.nii.gz")
    return lambda *words: mrisr_command("upscale", "--model", weights, "--voxel-size", "1.8", *words)


def read(path: str) -> dict:
    return json.loads(Path(path).read_text())


def test_info_takes_the_place_of_the_sidecar(call):
    assert call("-i", "a.nii.gz", "-o", "o.nii.gz", "--info", "./o.json").code == 0
    assert "chi2" in str(read("o.json")) and "Sources" not in read("o.json")
    assert sorted(os.listdir()) == ["a.nii.gz", "o.json", "o.nii.gz", "scans"]
    end = call("-i", "a.nii.gz", "-o", "o.nii.gz", "--info", "o.json", "--skip-existing")
    assert end.code == 2 and "takes the sidecar's place" in end.errors[0]


def test_so_it_does_in_a_folder(call):
    assert call("-i", "scans", "-o", "out", "--info", "out").code == 0
    assert "Sources" not in read("out/a.json")
    assert call("-i", "scans", "-o", "out", "--info", "out", "--skip-existing").code == 2
    assert call("-i", "scans", "-o", "out", "--std", "out", "--samples", "2", "--steps", "2").code == 2


def test_the_sidecar_of_the_original_stays(call):
    Path("a.json").write_text('{"EchoTime": 0.1}')
    end = call("-i", "a.nii.gz", "-o", "a.mgz", "--force")
    assert end.code == 4 and "a.json: is a file of the input" in end.errors[0]
    assert read("a.json") == {"EchoTime": 0.1} and not os.path.exists("a.mgz")
    for beside in (("--info", "scans"), ("--std", "scans/std", "--samples", "2", "--steps", "2")):
        end = call("-i", "scans", "-o", "out", *beside, "--skip-existing")
        assert end.code == 4 and "scans" in end.errors[0] and not os.path.exists("out")


@pytest.mark.parametrize(("source", "target"), [("a.nii.gz", "o.nii"), ("scans", "out")])
def test_a_json_of_somebody_else_is_kept(source, target, call):
    os.mkdir("out")
    for path in ("o.json", "out/a.json"):
        Path(path).write_text('{"mine": 1}')
    end = call("-i", source, "-o", target)
    assert end.code in (4, 9) and "exists already" in end.err and "sidecar" in end.err
    assert read("o.json") == read("out/a.json") == {"mine": 1}
    assert not os.path.exists("o.nii") and not os.path.exists("out/a.nii.gz")
