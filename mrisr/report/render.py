"""Templates to HTML, curves to SVG, and the viewer's script into a report."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mrisr import __version__
from mrisr.errors import UsageError
from mrisr.io.atomic import replacing
from mrisr.report.folder import FIGURES, make_folder

__all__ = ["VIEWER", "page", "plot", "put_viewer", "viewer_link"]

HERE = Path(__file__).parent
VIEWER = HERE / "vendor" / "niivue.umd.js"
VIEWER_VERSION = "0.69.0"
PLOT = {"width": 340, "height": 210, "left": 40, "right": 10, "top": 10, "bottom": 34}
FLOOR_DB = -110.0
MISFIT = 2.0  # chi2 from which on it is red


def page(template: str, context: dict[str, Any]) -> str:
    """A template of ours with `context`; all that is put in is escaped. UsageError without Jinja."""
    return _templates().get_template(template).render(version=__version__, **context)


def viewer_link() -> str:
    """The viewer's script below a report's folder."""
    return f"{FIGURES}/niivue-{VIEWER_VERSION}.js"


def put_viewer(folder: Path) -> None:
    """The viewer's script and its licence into a report, unless they are there."""
    make_folder(folder / FIGURES)
    for origin, name in ((VIEWER, viewer_link()), (VIEWER.with_name("LICENSES.txt"), f"{FIGURES}/niivue-licenses.txt")):
        target = folder / name
        if target.is_file() and _digest(target) == _digest(origin):
            continue
        with replacing(target, force=True) as beside:
            beside.write_bytes(origin.read_bytes())


def plot(line) -> dict[str, Any]:
    """Where things are in the plot of one axis (`mrisr.report.spectrum.AxisSpectrum`), in the pixels of PLOT."""
    lowest = max(FLOOR_DB, 10 * np.floor(min(line.before[1:].min(), line.after[1:].min()) / 10))
    lowest = min(lowest, -20.0)
    wide = PLOT["width"] - PLOT["left"] - PLOT["right"]
    high = PLOT["height"] - PLOT["top"] - PLOT["bottom"]

    def x(frequency):
        return PLOT["left"] + wide * np.minimum(np.asarray(frequency) / line.highest, 1.0)

    def y(level):
        return PLOT["top"] + high * np.clip(np.asarray(level) / lowest, 0, 1)

    def path(levels) -> str:
        return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x(line.frequency), y(levels)))

    step = _step(line.highest, 4)
    return {
        **PLOT,
        "before": path(line.before),
        "after": path(line.after),
        "edge": float(x(line.measured)),
        "x": [(float(x(f)), f"{f:.3g}") for f in np.arange(0, line.highest * 1.001, step)],
        "y": [(float(y(v)), f"{v:.0f}") for v in np.arange(0, lowest - 1, -_step(-lowest, 4))],
    }


def _step(reach: float, parts: int) -> float:
    """A round step that divides `reach` into about so many parts."""
    rough = reach / parts
    unit = 10 ** np.floor(np.log10(rough))
    return float(min((unit * k for k in (1, 2, 2.5, 5, 10)), key=lambda step: abs(step - rough)))


@cache
def _templates():
    try:
        import jinja2
    except ImportError as error:
        raise UsageError(f"report: needs Jinja ({error}); install it: pip install jinja2") from error
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = lambda name: Markup((HERE / "templates" / name).read_text(encoding="utf-8"))
    environment.globals["misfit"] = MISFIT
    environment.filters["number"] = _number
    return environment


def _number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """A number as a page shows it: a true minus, a dash where there is none, no zero for what is none."""
    if value is None:
        return "–"
    if value and abs(value) < 0.5 * 10**-digits:
        return f"< {10**-digits:g}" if value > 0 else f"> −{10**-digits:g}"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


@cache
def _hash_of(path: str, size: int, time: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _digest(path: Path) -> str:
    status = path.stat()
    return _hash_of(str(path), status.st_size, status.st_mtime_ns)
