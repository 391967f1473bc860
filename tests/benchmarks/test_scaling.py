"""What scaling.py makes of its measurements."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling

    return scaling


def test_the_fit_finds_the_law_that_made_the_rows(scaling):
    rows = [
        {"threads": t, "voxels": v, "seconds": 2e-6 * v**1.1 / t, "peak_bytes": 3e8 + 40 * v}
        for t in (1, 2)
        for v in (10**5, 10**6, 4 * 10**6, 8 * 10**6)
    ]
    found = scaling.fit(rows, 1)
    assert found["time_exponent"] == found["time_exponent_of_the_larger_half"] == 1.1
    assert found["peak_bytes_per_voxel"] == 40 and found["peak_fixed_mb"] == 300 and found["largest_deviation"] == "0%"
    assert set(scaling.speed_up(rows).values()) == {2.0}


def test_factors_count_voxels(scaling):
    assert [scaling.edge_of(96, f) for f in (1, 8)] == [96, 192]
    assert scaling.edge_of(96, 0.25) ** 3 == pytest.approx(96**3 / 4, rel=0.03)
