"""What a page says in numbers and words: from a result's sidecar and from the voxels before and after."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrisr.report.spectrum import AxisSpectrum, gain
from mrisr.report.views import Pair

__all__ = ["KEY", "Numbers", "bands_of", "numbers", "provenance", "scrubbed", "shares"]

KEY = "Mrisr"  # of a sidecar, for what BIDS has no words for
PROFILES = {
    "kspace": "a cut of k-space",
    "gaussian": "a Gaussian slice profile",
    "supergaussian": "a steep slice profile",
    "unknown": "not known; taken from the voxel size",
}
# A path from the root, up to its last part: "/home/someone/a.nii" leaves "a.nii". Not "1/2", nor what follows "https:".
_PATH = re.compile(r"(?<![\w:/.)])/(?:[^\s/:'\"<>]+/)+")


@dataclass(frozen=True)
class Numbers:
    """Worth sorting by; None where there is nothing to tell.

    gain      power in the synthesised band over that of cubic interpolation, dB: how much was added, not how much
              is right
    changed   root mean square of after - before inside the head, % of the intensity window
    measured  of the frequencies that the output grid can hold, how many % were measured
    chi2      mean squared misfit of the result, degraded as the scan was, over the noise variance; 1 is ideal
    seam      largest difference between neighbouring tiles, % of the range
    doubt     median spread of the samples inside the head, % of the intensity window
    warnings  how many
    """

    gain: float | None
    changed: float | None
    measured: float | None
    chi2: float | None
    seam: float | None
    doubt: float | None
    warnings: int


def numbers(pair: Pair, axes: list[AxisSpectrum | None], record: dict[str, Any]) -> Numbers:
    """The numbers of one result; `record` is its sidecar."""
    own, window = record[KEY], pair.window[1] - pair.window[0]
    head = pair.head
    change = doubt = None
    if head.any():
        change = 100 * float(np.sqrt(np.mean((pair.after[head] - pair.before[head]) ** 2, dtype=np.float64))) / window
        if pair.spread is not None:
            doubt = 100 * float(np.median(pair.spread[head])) / window
    fits = [c["Chi2"] for c in own.get("Consistency", ()) if c.get("Chi2") is not None]
    seam = own.get("SeamError")
    return Numbers(
        gain=gain(axes),
        changed=change,
        measured=100 * math.prod(share for share in shares(own)),
        chi2=max(fits, key=lambda c: abs(math.log(max(c, 1e-30)))) if fits else None,
        seam=None if seam is None else 100 * seam,
        doubt=doubt,
        warnings=len(own.get("Warnings", ())),
    )


def bands_of(own: dict[str, Any]) -> list[tuple[float, float]]:
    """(measured to, synthesised to) of each stored axis, cycles per mm."""
    return [(b["MeasuredToCyclesPerMM"], b["SynthesisedToCyclesPerMM"]) for b in own["Bands"]]


def shares(own: dict[str, Any]) -> list[float]:
    """Per stored axis the measured part of the output's frequencies, 0 to 1."""
    return [min(1.0, measured / highest) for measured, highest in bands_of(own)]


def provenance(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table of where a result is from; only what is known."""
    own = record[KEY]
    source, engine = own.get("Input", {}), own.get("Engine", {})
    ran = ", ".join(filter(None, (engine.get("Name"), engine.get("Device"), engine.get("Precision"))))
    output = own.get("Output", {})
    rows = [
        ("Scan", source.get("Name")),
        ("Scan, SHA-256", source.get("SHA256")),
        ("Acquisition, as its sidecar has it", _options(source.get("Facts") or {})),
        ("Model", own.get("Model")),
        ("Weights, SHA-256", own.get("WeightsSHA256")),
        ("Options", _options(own.get("Options") or {})),
        ("Learnt from the scan", _learning(own.get("Adapted"))),
        ("Mode", own.get("Mode")),
        ("Ran on", ran),
        ("Tiles", " – ".join(filter(None, (own.get("Tiles"), own.get("Seam"))))),
        ("Stored as", output.get("DataType")),
        ("Gradient nonlinearity", own.get("GradientNonlinearity")),
        ("Bias field", own.get("BiasField")),
        ("Seconds", _seconds(own.get("Seconds"))),
        ("mrisr", own.get("Version")),
        ("Made", own.get("Date")),
    ]
    return [(name, scrubbed(str(text))) for name, text in rows if text]


def _learning(own: dict[str, Any] | None) -> str:
    """What the network has learnt from the scan itself."""
    if not own:
        return ""
    gain = own.get("HeldBackGainDB")
    text = f"{own.get('Steps')} steps in {own.get('Seconds') or 0:.0f} s"
    text += "" if gain is None else f", planes that were held back {gain:+.2f} dB"
    return text if own.get("Used") else f"{text}; not used"


def scrubbed(text: str) -> str:
    """`text` without the folders of this machine: of a path from the root its last part is left."""
    for folder in (Path.home(), Path.cwd()):
        if len(folder.parts) > 1:
            text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)
    return _PATH.sub("", text)


def _options(options: dict[str, Any]) -> str:
    """Options that were given, as name = value."""
    return ", ".join(f"{name} = {_text(value)}" for name, value in options.items() if value is not None)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("Name", ", ".join(f"{k} {_text(v)}" for k, v in value.items())))
    if isinstance(value, list):
        parts = [" ".join(map(_text, v)) if isinstance(v, list) else _text(v) for v in value]
        return (" × " if all(isinstance(v, (int, float)) for v in value) else ", ").join(parts)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _seconds(seconds: dict[str, float] | None) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in (seconds or {}).items() if value >= 0.05)
