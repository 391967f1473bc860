"""DICOM both ways: a series -> Volume, and a result -> a derived series that a PACS takes.

>>> from mrisr.io import dicom
>>> series = dicom.find("study/", series=5)                       # doctest: +SKIP
>>> result, info = mrisr.upscale(series.volume(), return_info=True)  # doctest: +SKIP
>>> dicom.write_series(result, series, info, "derived/")             # doctest: +SKIP
"""

from __future__ import annotations

from mrisr.io.dicom.parts import is_dicom
from mrisr.io.dicom.series import Series, find, read
from mrisr.io.dicom.write import Written, check_folder, check_source, write, write_series

__all__ = ["Series", "Written", "check_folder", "check_source", "find", "is_dicom", "read", "write", "write_series"]
