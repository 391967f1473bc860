"""What the numbers look like: scan, yardstick, method, reference and both errors, in three planes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mrisr.evaluate.cases import Trial
from mrisr.evaluate.metrics import data_range
from mrisr.io.atomic import replacing
from mrisr.preview import Panel, contact_sheet, fewer_greys, percentile_window

ERROR_SPAN = 0.15  # of the data range, from grey to white


def save_comparison(
    path: Path,
    trial: Trial,
    images: dict[str, np.ndarray],
    psnr: dict[str, float],
    *,
    errors: Sequence[str] | None = None,
    levels: int = 256,
    force: bool = False,
) -> None:
    """Write a PNG: scan | each of `images` | reference | error of those in `errors` (None: of each; grey: none), all in
    one grey window. levels: shades of grey, a power of two; fewer make a smaller file."""
    affine = trial.fine.affine
    window = percentile_window(trial.reference)
    span = ERROR_SPAN * data_range(trial.reference)
    panels = [Panel("scan", trial.scan, trial.coarse.affine, window)]
    panels += [Panel(f"{name} {psnr[name]:.2f} dB", image, affine, window) for name, image in images.items()]
    panels += [Panel("reference", trial.reference, affine, window)]
    panels += [
        Panel(f"{name} - reference", images[name] - trial.reference, affine, (-span, span))
        for name in (images if errors is None else errors)
    ]
    footer = f"{trial.subject} {trial.case} | errors: black/white at {100 * ERROR_SPAN:g} % of the range"
    sheet = contact_sheet(panels, footer=footer)
    if levels < 256:
        sheet = fewer_greys(sheet, levels)
    with replacing(path, force=force) as beside:
        sheet.save(beside, format="PNG", optimize=True)
