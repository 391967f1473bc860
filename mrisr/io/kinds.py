"""What kind of picture a volume is: labels, masks, phase and field maps are no scans, and must not pass as such.

What says of itself that it is a label map is refused; what only looks like something else is upscaled with a warning.
"""

from __future__ import annotations

import os
import re
import warnings

import numpy as np

from mrisr.errors import InputError, MrisrWarning
from mrisr.io import label_maps
from mrisr.volume import Volume

__all__ = ["check_kind", "refuse_labels"]

LABEL_INTENTS = (1002, 1003)  # NIfTI: the values are indices into a table of labels, or of names of structures
NOT_INTENSITIES = {1004: "vectors", 1005: "matrices", 1006: "displacements", 1007: "vectors", 1008: "points",
                   1009: "triangles", 1010: "quaternions", 2003: "colours", 2004: "colours"}  # fmt: skip
STATISTICS = range(2, 25)  # intent codes of statistical maps
# BIDS: the last part of a file's name.
LABEL_SUFFIXES = ("dseg", "mask")
FIELD_SUFFIXES = {"phase1": "phase", "phase2": "phase", "phase": "phase", "phasediff": "phase", "fieldmap": "field map",
                  "probseg": "map of probabilities"}  # fmt: skip
QUANTITIES = ("T1map", "T2map", "T2starmap", "R1map", "R2map", "R2starmap", "PDmap", "MTRmap", "MTsat", "M0map",
              "MWFmap", "Chimap", "TB1map", "RB1map", "ADC", "FA", "MD")  # fmt: skip
ALIKE = 0.6  # of neighbours inside of a label map have one value; of a scan, even of 8 bits, far fewer
NEGATIVE = 0.25  # of the range: magnitudes have less below 0 (filters and registration leave some)
FEW = 512  # different values that labels may have which are no whole numbers: scaled ones
SAMPLE = 4_000_000  # voxels that are looked at


def refuse_labels(name: str, why: str) -> None:
    """InputError: a label map."""
    raise InputError(
        f"{name}: a label map ({why}): labels are no intensities, and values between them would mean nothing; resample "
        "it by the nearest neighbour instead"
    )


def check_kind(volume: Volume) -> None:
    """Refuse what is a label map by its own account, and warn (MrisrWarning) where voxels look like no magnitudes.

    Raises InputError naming the file and what says so.
    """
    header = volume.header
    intent = int(header["intent_code"]) if header is not None and "intent_code" in header else 0
    if intent in LABEL_INTENTS:
        refuse_labels(volume.name, f"NIfTI intent code {intent}")
    if intent in NOT_INTENSITIES:
        raise InputError(f"{volume.name}: holds {NOT_INTENSITIES[intent]} (intent code {intent}), not intensities")
    suffix = re.split(r"[_.]", re.sub(r"(\.nii|\.mgh|\.mgz|\.gz|\.hdr|\.img)+$", "", os.path.basename(volume.name)))[-1]
    if suffix in LABEL_SUFFIXES and "_" in os.path.basename(volume.name):
        refuse_labels(volume.name, f"its name ends in _{suffix}")
    kind = _kind_by_name(volume, suffix, intent) or _kind_by_voxels(volume.data)
    if kind:
        warnings.warn(
            f"{volume.name}: {kind}: the network has learnt magnitude images only, and detail that it adds here means "
            "nothing; check what this is",
            MrisrWarning,
            stacklevel=3,
        )


def _kind_by_name(volume: Volume, suffix: str, intent: int) -> str | None:
    """What header, name and metadata say that it is, where that is no magnitude."""
    if intent in STATISTICS:
        return f"a statistical map (NIfTI intent code {intent})"
    if suffix in FIELD_SUFFIXES:
        return f"a {FIELD_SUFFIXES[suffix]} (its name ends in _{suffix})"
    if suffix in QUANTITIES:
        return f"a map of a quantity (its name ends in _{suffix})"
    if part := re.search(r"_part-(phase|real|imag)_", os.path.basename(volume.name)):
        return f"no magnitude image (its name has part-{part[1]})"
    words = volume.meta.get("ImageType")
    words = words if isinstance(words, (list, tuple)) else str(words or "").split("\\")
    kinds = {str(w).upper() for w in words} & {"P", "PHASE", "PHASE MAP", "PHASE_MAP", "REAL", "IMAGINARY"}
    return f"no magnitude image (ImageType {sorted(kinds)[0]})" if kinds else None


def _kind_by_voxels(data: np.ndarray) -> str | None:
    """What the voxels look like, where that is no magnitude."""
    low, high = float(data.min()), float(data.max())
    if low < -NEGATIVE * (high - low):
        angles = abs(low + np.pi) < 0.02 and abs(high - np.pi) < 0.02
        kind = "a phase image, in radians" if angles else "a field map or another image with a sign"
        return f"it looks like {kind} (values from {low:.4g} to {high:.4g})"
    if abs(low) < 0.02 and abs(high - 2 * np.pi) < 0.02:
        return f"it looks like a phase image, in radians (values from {low:.4g} to {high:.4g})"
    frame = data if data.ndim == 3 else data[..., 0]
    lines = frame[:: max(1, frame.size // SAMPLE)]
    values = np.unique(lines)
    if len(values) == 2:
        return f"it looks like a mask (nothing but {values[0]:g} and {values[1]:g})"
    if len(values) > FEW and not np.array_equal(lines, np.round(lines)):
        part = label_maps.fractions(frame[::3, ::3, ::3])
        return f"it looks like a label map that was interpolated ({part:.0%} fractions)" if part else None
    counts = np.unique(lines, return_counts=True)
    background = counts[0][counts[1].argmax()]  # the commonest value
    alike = max(_alike(np.moveaxis(lines, axis, 0), background) for axis in range(lines.ndim))
    if alike < ALIKE:
        return None
    return f"it looks like a label map ({len(values)} different values, {100 * alike:.0f} % of neighbours are equal)"


def _alike(lines: np.ndarray, background: float) -> float:
    """The share of neighbours along the first axis that have one value, where neither is background; 0 where there are
    too few."""
    first, second = lines[:-1], lines[1:]
    inside = (first != background) & (second != background)
    return float((first == second)[inside].mean()) if inside.sum() >= 64 else 0.0
