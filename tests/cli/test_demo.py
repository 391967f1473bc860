"""``mrisr demo`` on the middle of the bundled template, without a network connection and with untrained weights."""

from __future__ import annotations

import json
import socket
import sys

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mrisr.cli import demo


def test_demo_needs_no_network(tmp_path, weights, mrisr_command, monkeypatch):
    pytest.importorskip("nilearn")

    def refuse(*args, **kwargs):
        raise AssertionError("the demo went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    whole = demo.load_template()
    assert whole.data.shape == (196, 232, 188) and whole.voxel_size == (1.0, 1.0, 1.0)
    part = whole.replace(np.ascontiguousarray(whole.data[40:136, 60:172, 50:130]), whole.affine)
    monkeypatch.setattr(demo, "load_template", lambda: part)
    end = mrisr_command("demo", "-o", tmp_path, "--model", weights, "--quiet")
    assert end.code == 0, end.err
    folder = tmp_path / "demo"
    assert sorted(p.name for p in folder.iterdir()) == [
        "demo.json",
        "demo.png",
        "input_2mm.nii.gz",
        "output_1mm.nii.gz",
    ]
    scores = json.loads((folder / "demo.json").read_text())["psnr_db"]
    assert list(scores) == ["cubic", "zero-filled", "mrisr"]
    # Untrained weights add nothing: what is left is the Fourier start, made consistent with the input.
    assert scores["mrisr"] > scores["cubic"]
    assert nib.load(folder / "output_1mm.nii.gz").shape == (96, 112, 80)
    with Image.open(folder / "demo.png") as picture:
        assert picture.width > 800
    assert "over cubic" in end.out and str(folder / "demo.png") in end.out
    again = mrisr_command("demo", "-o", tmp_path, "--model", weights)
    assert again.code == 4 and "--force" in again.errors[0]


def test_without_nilearn_the_error_says_what_to_install(tmp_path, weights, mrisr_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    end = mrisr_command("demo", "-o", tmp_path, "--model", weights)
    assert end.code == 3 and "pip install '.[demo]'" in end.errors[0] and len(end.errors) == 1
    assert list((tmp_path / "demo").iterdir()) == []
