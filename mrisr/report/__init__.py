"""The page that a scan gets, and the table of all pages: `--report FOLDER`.

A page shows before (cubic interpolation) and after on one grid, what was measured and what was synthesised, the numbers
and where the result is from. It needs no server and no network: a folder that can be opened, moved and sent.
"""

from mrisr.report.folder import Place, check, place_for, records
from mrisr.report.notebook import show, view
from mrisr.report.page import failed, is_current, write
from mrisr.report.table import write_index

__all__ = ["Place", "check", "failed", "is_current", "place_for", "records", "show", "view", "write", "write_index"]
