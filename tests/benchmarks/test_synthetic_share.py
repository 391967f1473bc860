"""The study of synthetic shares: people count alike within a contrast, and one seed is not called a difference."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS, EXPERIMENTS = (Path(__file__).resolve().parents[2] / name for name in ("benchmarks", "experiments"))

PEOPLE = ("t1w_0p9mm_b", "t1w_1mm_uih_a", "flair_1mm_p26", "t2w_1mm_M2307")


@pytest.fixture
def study(monkeypatch):
    pytest.importorskip("accelerate", reason="training needs accelerate (extra train)")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("synthetic_share", EXPERIMENTS / "synthetic_share.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(share, seed, t2w):
    contrasts = {"T1w": 0.5, "FLAIR": 0.7, "T2w": t2w}
    return {"share": share, "seed": seed, "steps": 90, "cpu_seconds": 60.0, "pairs_share": 0.4, "contrasts": contrasts,
            "gains": {**{f"{p}/iso2": t2w + (p == "t1w_0p9mm_b") for p in PEOPLE}, "fsc": 0.1}}  # fmt: skip


def test_people_of_a_contrast_count_alike(study):
    gains = {"t1w_0p9mm_b/iso2": 1.0, "t1w_0p9mm_b/mix": 0.0, "t1w_1mm_uih_a/iso2": 0.3, "flair_1mm_p26/iso2": 0.7,
             "t2w_1mm_M2307/iso2": 0.2, "mean": 9.0, "fsc": 9.0}  # fmt: skip
    assert study.by_contrast(gains) == {"T1w": pytest.approx(0.4), "FLAIR": 0.7, "T2w": 0.2}


def test_a_table_states_the_spread_or_that_there_is_none(study):
    about = {"parameters": 4e5, "minutes": 1.0, "command": "python x", "commit": "abc", "date": "today"}
    rows = [row(0.0, 0, 0.1), row(0.0, 1, 0.3), row(1.0, 0, 0.4)]
    text = study.table({**about, "summary": study.summary(rows), "rows": rows})
    assert "| share | iso2, T1w | iso2, FLAIR | iso2, T2w |" in text and "\n| 0 | 0.70 | 0.20 | 0.20 |" in text
    assert "| 0 | 2 | 90 | 60 | 40% | 0.50 +- 0.00 | 0.70 +- 0.00 | 0.20 +- 0.10 | 0.100 +- 0.000 |" in text
    assert "| 1 | 1 | 90 | 60 | 40% | 0.50 | 0.70 | 0.40 | 0.100 |" in text and "One seed of a share" in text
    rows.append(row(1.0, 1, 0.4))
    assert "One seed of a share" not in study.table({**about, "summary": study.summary(rows), "rows": rows})


def test_scans_and_label_maps_of_a_run_differ_in_share_alone(study):
    first, second = (study.configuration(("a",), share, 3, 50) for share in (0.0, 1.0))
    assert (first.synthetic_share, second.synthetic_share) == (0.0, 1.0)
    assert {k for k, v in vars(first).items() if v != getattr(second, k)} == {"synthetic_share"}
