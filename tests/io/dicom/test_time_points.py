"""A series of several temporal positions: refused with their list; each is read, and written, by itself."""

from __future__ import annotations

import numpy as np
import pytest

from mrisr.errors import InputError
from mrisr.io import dicom

pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")
INFO = {"model": "base", "weights": "0" * 64, "mode": "mean"}


@pytest.fixture
def two(tmp_path, made):
    """Time points 1 and 2 in one series; the second one is brighter by 1000."""
    folder = tmp_path / "source"
    folder.mkdir()
    for n in (1, 2):
        made.series(folder / str(n), TemporalPositionIdentifier=n, NumberOfTemporalPositions=2, AcquisitionNumber=n)
    for path in (folder / "2").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PixelData = (dataset.pixel_array + 1000).astype("<i2").tobytes()
        dataset.save_as(path)
    return folder


def test_they_are_listed_and_never_mixed(two):
    with pytest.raises(
        InputError, match=r"2 groups .*--group.*1 \(.*temporal 1, 4 frames\); 2 \(.*temporal 2, 4 frames"
    ):
        dicom.read(two)
    first, second = (dicom.read(two, group=n) for n in (1, 2))
    assert np.array_equal(second.data, first.data + 1000)
    assert np.array_equal(dicom.read(two, group="temporal 2").data, second.data)


def test_each_is_written_as_a_series_of_its_own_and_says_which_it_is(two, tmp_path):
    uids, sources = [], []
    for n in (1, 2):
        series = dicom.find(two, group=n)
        written = dicom.write_series(series.volume(), series, INFO, tmp_path / str(n))
        uids.append(written.series_uid)
        found = [pydicom.dcmread(path) for path in written.files]
        for dataset in found:
            assert f"group {n} of 2 (picture, temporal {n}) of its series" in dataset.DerivationDescription
            assert "TemporalPositionIdentifier" not in dataset and "NumberOfTemporalPositions" not in dataset
            assert dataset.AcquisitionNumber == n
        sources.append({i.ReferencedSOPInstanceUID for d in found for i in d.SourceImageSequence})
    assert uids[0] != uids[1] and not sources[0] & sources[1]
    assert dicom.read([*(tmp_path / "2").iterdir()]).data.max() > 1000
