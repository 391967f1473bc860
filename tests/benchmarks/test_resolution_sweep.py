"""The sweep puts heads where it says, tells inside from outside, and its page needs nothing but its JSON."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mrisr.evaluate.cases import Subject, subject_of
from mrisr.grid import Grid

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TRAINED = {"isotropic": [1.0, 4.0], "slice": [1.0, 8.0]}


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("resolution_sweep", BENCHMARKS / "resolution_sweep.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "resolution_sweep", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def subject():
    """A smooth ball off the middle, so that a wrong turn or shift shows."""
    grid = Grid((40, 40, 40), np.diag([1.0, 0.9, 1.1, 1.0]))
    where = np.indices(grid.shape).reshape(3, -1).T * grid.voxel_size
    data = 1000 * np.exp(-0.5 * ((where - (24, 16, 20)) ** 2).sum(axis=1) / 5.0**2).reshape(grid.shape)
    return Subject("ball", data.astype(np.float32), grid, data > 100)


def middle_mm(subject: Subject) -> np.ndarray:
    """Where the brightness is centred, in mm."""
    weights = subject.data / subject.data.sum(dtype=np.float64)
    index = [float((weights.sum(axis=tuple(b for b in range(3) if b != a)) * np.arange(n)).sum())
             for a, n in enumerate(weights.shape)]  # fmt: skip
    return (subject.grid.affine @ [*index, 1.0])[:3]


def test_turned_and_resampled_heads_stay_where_they_are(sweep, subject):
    crop = subject_of("ball", subject.data, subject.grid, crop=32)
    for found in (sweep.turn(subject, crop, 25.0), sweep.with_voxel(subject, 0.7), sweep.with_voxel(subject, 1.6)):
        assert np.abs(middle_mm(found) - (24, 16, 20)).max() < 0.1
        assert found.mask.shape == found.data.shape and found.mask.any()
    oblique = sweep.turn(subject, crop, 25.0).grid
    assert oblique.shape == (32, 32, 32) and np.allclose(oblique.voxel_size, subject.grid.voxel_size)
    assert np.abs(oblique.affine[0, 1]) > 0.3
    assert np.allclose(sweep.with_voxel(subject, 0.7).grid.voxel_size, 0.7)


def test_every_row_is_a_scan_and_the_trained_range_is_the_models(sweep):
    specs = sweep.specs()
    assert len({(s.group, s.label) for s in specs}) == len(specs) > 30
    outside = [s.label for s in specs if not sweep.inside(s, TRAINED)]
    assert outside == ["5x", "1 x 1 x 10"]
    assert {s.target for s in specs if s.target} == {0.5, 0.6, 0.7, 0.8, 1.0, 1.2}


def test_a_row_is_measured_and_the_page_is_made_from_json(sweep, subject, random_model, tmp_path):
    spec = next(s for s in sweep.specs() if s.label == "5x")
    found = sweep.measure(spec, subject, replace(random_model("local"), meta={"trained_range": TRAINED}))
    assert found["warned"] and found["scan_mm"] == [5.0, 4.5, 5.5] and found["target_mm"] == [1.0, 0.9, 1.1]
    rows = [
        {"group": s.group, "label": s.label, "x": s.x, "inside": sweep.inside(s, TRAINED), "people": [found, found]}
        for s in sweep.specs()
    ]
    result = {"command": "c", "model": "m", "trained_range": TRAINED, "crop": 40, "people": ["a", "b"], "rows": rows}
    result = json.loads(json.dumps({**result, "commit": "abc", "date": "today"}))
    page = sweep.render(result)
    assert "of the 2 outside, 2 warned" in page and page.count("\n| ") == len(rows) + 1
    sweep.plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
