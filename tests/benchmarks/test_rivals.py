"""The rivals of the end-to-end benchmark, on volumes of a few voxels: they compute what they claim to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mrisr.nn.vector import VECTOR_DIM

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def rivals(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import rivals

    return rivals


def test_monai_windows_agree_with_the_network_up_to_their_seams(rivals, random_model):
    pytest.importorskip("monai", reason="monai is not installed (an extra of the benchmarks)")
    torch.manual_seed(0)
    found = rivals.monai(random_model("local").denoiser.net, torch.zeros(1, VECTOR_DIM), (40, 36, 33), roi=32)
    assert found["seconds"] > 0 and 0 < found["difference_to_whole"] < 0.5


def test_a_missing_monai_is_said(rivals, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.inferers", None)
    assert "pip install" in rivals.monai(None, None, (8, 8, 8))["absent"]


def test_the_paper_is_extrapolated_from_its_measured_slice(rivals):
    found = rivals.paper((260, 128, 128))
    assert found["as_released_s"] == found["on_this_grid_s"] == pytest.approx(7.5 * 86400, rel=0.01)
    assert "extrapolated from 2490 s" in found["how"]
