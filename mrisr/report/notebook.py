"""In a notebook: before and after to look at, and the account of a run."""

from __future__ import annotations

import html
import sys
from typing import Any

import numpy as np

from mrisr.errors import UsageError
from mrisr.io.adapters import to_volume
from mrisr.report.views import LETTERS, PLANES, WINDOW_SHARE, Pair, pair
from mrisr.report.volumes import nifti_bytes
from mrisr.volume import Volume

__all__ = ["Account", "show", "view"]

ABSENT = "view: needs ipyniivue (in a notebook) or matplotlib, found neither ({}); install one: pip install matplotlib"
INCHES = 3.4  # of a picture's height


def view(before: Any, after: Any, *, affine: Any = None, input_voxel_size: Any = None) -> Any:
    """Before (cubic interpolation) and after, to look at.

    Args:
        before, after: what `mrisr.upscale` took and gave: paths, nibabel images, arrays, tensors, Volumes.
        affine, input_voxel_size: of `before`, where it is an array or a tensor, as `mrisr.upscale` takes them.

    Returns:
        In a notebook with ipyniivue installed a NiiVue widget with both volumes, after on top (its opacity is
        `.volumes[1].opacity`); else a matplotlib figure of three planes, before, after and difference.

    Raises:
        UsageError: neither ipyniivue nor matplotlib is there.
        GeometryError: the two are not the two sides of one upscaling.
    """
    pair = _pair(before, after, affine, input_voxel_size)
    if _in_notebook():
        try:
            import ipyniivue
        except ImportError:
            return _figure(pair)
        return _widget(ipyniivue, pair)
    return _figure(pair)


def show(info: Any, before: Any = None, after: Any = None, **place: Any) -> Any:
    """The account of a run (`mrisr.infer.info.Info`), and with `before` and `after` the pictures too.

    Returns:
        An `Account`, which a notebook shows as a table and a console as text; with `before` and `after` what `view`
        returns, after the account was displayed or printed.

    Raises UsageError where only one of the two is given, and as `view` does.
    """
    account = Account(info)
    if before is None and after is None:
        return account
    if before is None or after is None:
        raise UsageError("show: give before and after, or neither")
    if _in_notebook():
        from IPython.display import display

        display(account)
    else:
        print(account)
    return view(before, after, **place)


class Account:
    """What was measured, what was synthesised, how and by what: `rows`, a list of (name, text); `warnings`."""

    def __init__(self, info: Any) -> None:
        sizes = [" × ".join(f"{v:.3g}" for v in g.voxel_size) for g in (info.input, info.target)]
        shapes = [" × ".join(map(str, g.shape)) for g in (info.input, info.target)]
        self.rows = [("grid", f"{shapes[0]} of {sizes[0]} mm → {shapes[1]} of {sizes[1]} mm")]
        for axis, r in enumerate(info.resolution):
            beyond = (
                f"synthesised to {r.synthesised_to:.3g}" if r.synthesised_to > r.measured_to else "none synthesised"
            )
            text = f"acquired {r.acquired_mm:.3g} mm; measured to {r.measured_to:.3g} cycles/mm, {beyond}"
            self.rows.append((f"stored axis {axis + 1}", text))
        self.rows.append(("acquisition", info.resolution_from))
        fits = [f"χ² {c.chi2_after:.3g}" if c.chi2_after is not None else "χ² not tested" for c in info.consistency]
        self.rows.append(("consistency", "; ".join(f"{f} ({c.why})" for f, c in zip(fits, info.consistency))))
        self.rows.append(("model", f"{info.model}, mode {info.mode}, {info.samples} sample(s) of {info.steps} step(s)"))
        if info.adapt is not None:
            end = "" if info.adapt.used else "; not used"
            learnt = f"{info.adapt.steps} steps, held-back planes {info.adapt.gain_db:+.2f} dB{end}"
            self.rows.append(("learnt from the scan", learnt))
        where = f"{info.engine.name} on {info.engine.device}, {info.engine.precision}"
        self.rows.append(("engine", f"{where}, {sum(info.seconds.values()):.1f} s"))
        self.warnings, self.notice = list(info.warnings), info.notice

    def __repr__(self) -> str:
        wide = max(len(name) for name, _ in self.rows)
        lines = [f"{name:<{wide}}  {text}" for name, text in self.rows]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings), self.notice])

    def _repr_html_(self) -> str:
        cell = "<tr><th style='text-align:left'>{}</th><td style='text-align:left'>{}</td></tr>"
        rows = "".join(cell.format(html.escape(name), html.escape(text)) for name, text in self.rows)
        alarms = "".join(f"<div style='color:#b3261e'><b>Warning</b>: {html.escape(t)}</div>" for t in self.warnings)
        return f"{alarms}<table>{rows}</table><small>{html.escape(self.notice)}</small>"


def _pair(before: Any, after: Any, affine: Any, voxel_size: Any) -> Pair:
    source, _ = to_volume(before, affine, voxel_size)
    if isinstance(after, np.ndarray) or hasattr(after, "detach"):  # knows no place: the field of view is that of before
        data = np.asarray(after.detach().cpu() if hasattr(after, "detach") else after)
        return pair(source, Volume(data, _over_the_same_view(source, data.shape), name="after", from_outside=False))
    result, _ = to_volume(after)
    return pair(source, result)


def _over_the_same_view(source: Volume, shape: tuple[int, ...]) -> np.ndarray:
    """The affine of a grid of `shape` over the field of view of `source`."""
    n_in, n_out = np.array(source.data.shape[:3]), np.array(shape[:3])
    ratio = n_in / n_out
    step = np.eye(4)
    step[:3, :3] = np.diag(ratio)
    step[:3, 3] = 0.5 * ((n_in - 1) - (n_out - 1) * ratio)
    return source.affine @ step


def _in_notebook() -> bool:
    """Whether this is a kernel that shows widgets; a console and a script are none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


def _widget(ipyniivue: Any, pair: Pair) -> Any:
    viewer = ipyniivue.NiiVue(is_radiological_convention=True, back_color=(0, 0, 0, 1), is_colorbar=False)
    grey = {"colormap": "gray", "cal_min": 0, "cal_max": 255, "colorbar_visible": False}
    packed = {name: nifti_bytes(pair, name) for name in ("before", "after")}
    viewer.load_volumes([{"data": data, "name": f"{name}.nii.gz", **grey} for name, data in packed.items()])
    return viewer


def _figure(pair: Pair) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(ABSENT.format(error)) from error
    pictures = {
        (plane, what): pair.picture(plane, what) for plane in PLANES for what in ("before", "after", "difference")
    }
    widths = [pictures[plane, "before"].width / pictures[plane, "before"].height for plane in PLANES]
    figure = Figure(figsize=(INCHES * sum(widths), 3 * INCHES), layout="constrained", facecolor="white")
    axes = figure.subplots(3, 3, width_ratios=widths)
    reach = f"after − before, ±{100 * WINDOW_SHARE:.0f} % of the window"
    titles = {"before": "before (cubic)", "after": "after", "difference": reach}
    for row, what in zip(axes, titles):
        row[0].set_ylabel(titles[what])
        for axis, plane in zip(row, PLANES):
            axis.imshow(np.asarray(pictures[plane, what].convert("RGB")), interpolation="bilinear")
            axis.set(xticks=[], yticks=[])
            if what == "before":
                axis.set_title(f"{plane} ({LETTERS[plane][0]} on the left)", fontsize=10)
    return figure
