"""How long it takes: the network, learning, and the network again."""

from __future__ import annotations

import pytest

from mrisr.cli import forecast
from mrisr.cli.voice import _part


def test_learning_lies_between_two_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("MRISR_CACHE", str(tmp_path))
    now = [100.0]
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: now[0])
    one = forecast.Forecast("kind")
    one.scan(2_000_000)
    one.tick("network", 0.0)
    now[0] += 10
    one.tick("network", 1.0)
    assert one.measurement == pytest.approx(5.0)  # seconds per million voxels
    one.tick("adapt", 0.0)
    now[0] += 30
    one.tick("adapt", 0.25)
    assert one.fraction() == pytest.approx(0.25) and one.remainder() == pytest.approx(90)
    assert _part("adapt", 0.25) == 0.25
    now[0] += 90
    one.tick("adapt", 1.0)
    one.tick("network", 0.0)
    assert one.fraction() == 0.0 and one.remainder() == pytest.approx(one.expected)
    now[0] += 40
    one.tick("network", 1.0)
    assert one.measurement == pytest.approx(5.0)  # learning is no part of the network's rate
