"""Real scans and DICOM series, which are no part of the repository: where they lie, and the marks of tests that read
them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MRISR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SCANS = SHARED / "data" / "train"
SERIES = Path(os.environ.get("MRISR_DICOM_DATA", SHARED / "data" / "dicom"))

needs_scans = pytest.mark.skipif(
    not SCANS.is_dir(), reason="no real scans: neither MRISR_SHARED nor ../shared holds data/train"
)
needs_series = pytest.mark.skipif(
    not SERIES.is_dir(), reason="no real series: neither MRISR_DICOM_DATA nor ../shared/data/dicom is there"
)
