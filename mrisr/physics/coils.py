"""Gradient coils: how far their fields put a point from where it is, as solid harmonics about the isocentre.

A point at r (mm, scanner coordinates) appears in the image at r + d(r); d is a `GradientCoil`'s displacement. Siemens
writes d / R0 per axis as coefficients A (cosine) and B (sine), in coordinates that grow to the left, to the front and
to the feet (L-A-I). Vendors keep these files confidential: none is shipped, `random_coil` makes up its own.

Sources: Janke et al., Magnetic Resonance in Medicine 52, 2004 (harmonics and correction); Jovicich et al., NeuroImage
30, 2006 (the vendors' conventions).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mrisr.errors import InputError, excerpt
from mrisr.physics import harmonics

RAS_TO_LAI = np.array([-1.0, 1.0, -1.0])  # its own inverse
HIGHEST_DEGREE = 30
LARGEST_FILE = 1 << 20  # bytes; coefficient files have a few thousand

_RADIUS = re.compile(r"([-+\d.eE]+)\s*m\s*=\s*R0", re.IGNORECASE)
_NUMBER = r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)"
_LNORM = re.compile(r"lnorm\s*=\s*(\d{1,9})", re.IGNORECASE)
_ROW = re.compile(
    r"^\s*\d+\s+([AB])\s*\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)\s+([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s+([xyz])\s*$"
)
_ROW_LIKE = re.compile(r"^\s*(?:\d+\s+[A-Za-z]\s*\(|(?:alpha|beta)_[xyz]\b)")
_COEF_ROW = re.compile(r"^\s*(alpha|beta)_([xyz])\s+(\d{1,4})\s+(\d{1,4})\s+" + _NUMBER + r"\s*;?\s*$")
_OTHERS = {
    "GE's gw_coils.dat": re.compile(r"\bSCALE[XYZ]\d|gw_coil|gradwarp", re.IGNORECASE),
    "Philips' geometry correction": re.compile(r"philips|\bGCOR\b", re.IGNORECASE),
}


@dataclass(frozen=True, eq=False)
class GradientCoil:
    """The displacement of a set of gradient coils.

    Attributes:
        radius: R0, mm.
        weights: float64 [3, K] in the order of `harmonics.terms(degree)`: displacement along L, A and I as a fraction
            of R0, at positions in L-A-I coordinates as a fraction of R0.
        name: what messages call it.
        isocentre: of the coils in scanner coordinates (RAS, mm): 0 unless the table was moved off it.
    """

    radius: float
    weights: np.ndarray
    name: str = "gradient coil"
    isocentre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def degree(self) -> int:
        """The highest degree that the weights have room for."""
        return int(round(np.sqrt(self.weights.shape[1]))) - 1

    def displacement_at(self, points: torch.Tensor) -> torch.Tensor:
        """points [3, P] (RAS, mm) -> displacement [3, P] (RAS, mm), dtype and device of `points`."""
        frame = torch.as_tensor(RAS_TO_LAI, dtype=points.dtype, device=points.device)[:, None]
        shift = harmonics.evaluate(self._scaled(points), self.weights, self.degree)
        return frame * self.radius * shift

    def gradient_at(self, points: torch.Tensor) -> torch.Tensor:
        """points [3, P] (RAS, mm) -> d displacement_a / d position_b [3, 3, P], no unit, exact."""
        expansion = np.einsum("cj,ajk->cak", self.weights, harmonics.gradient_matrices(self.degree))
        expansion *= RAS_TO_LAI[:, None, None] * RAS_TO_LAI[None, :, None]
        flat = harmonics.evaluate(self._scaled(points), expansion.reshape(9, -1), self.degree)
        return flat.reshape(3, 3, -1)

    def _scaled(self, points: torch.Tensor) -> torch.Tensor:
        centre = torch.as_tensor(self.isocentre, dtype=points.dtype, device=points.device)[:, None]
        frame = torch.as_tensor(RAS_TO_LAI / self.radius, dtype=points.dtype, device=points.device)[:, None]
        return (points - centre) * frame


def coil(radius: float, coefficients: dict, name: str = "gradient coil") -> GradientCoil:
    """A coil from coefficients {("A" or "B", n, m, "x", "y" or "z"): value}, in Siemens' terms; radius in mm."""
    degree = max((n for _, n, _, _ in coefficients), default=0)
    weights = np.zeros((3, len(harmonics.terms(degree))))
    where = harmonics.place(degree)
    for (letter, n, m, axis), value in coefficients.items():
        if letter == "B" and m == 0:
            continue  # the sine of zero
        kind = harmonics.COSINE if letter == "A" else harmonics.SINE
        weights["xyz".index(axis), where[n, m, kind]] = value
    return GradientCoil(float(radius), weights, name)


def read(path: str | os.PathLike, *, radius: float | None = None) -> GradientCoil:
    """The coil in a Siemens coefficient file: `.grad`, or `.coef` with its `radius`.

    Args:
        path: text. A .grad holds the line "0.250 m = R0, lnorm = 4? ..." and rows "NO. TYPE SPECTRUM AXIS" such as
            "1 A( 3, 0) -0.1 z". A .coef holds rows "alpha_x 3 1 0.1" (alpha: A, beta: B) and no radius.
        radius: R0 in mm, for a .coef.

    Raises:
        InputError: the file cannot be read, is of another vendor or format, or contradicts itself.
    """
    name = os.fspath(path)
    text = _text(Path(path), name)
    rows, bad = [], None
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        if match := _ROW.match(line):
            letter, n, m, value, axis = match.groups()
        elif match := _COEF_ROW.match(line):
            word, axis, n, m, value = match.groups()
            letter = "A" if word == "alpha" else "B"
        else:
            bad = bad or (number if _ROW_LIKE.match(line) else None)
            continue
        rows.append((number, (letter, int(n), int(m), axis), value))
    if not rows or bad:
        raise InputError(f"{name}: {_why_not(text, bad)}")
    return coil(_radius(text, radius, name), _coefficients(rows, name), name)


def _text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"{name}: the coefficients cannot be read ({error.strerror}); check the path") from error
    if not raw.strip():
        raise InputError(f"{name}: the file is empty; expected the coefficients of a gradient coil")
    if len(raw) > LARGEST_FILE or b"\0" in raw:
        raise InputError(f"{name}: not a text file; expected Siemens coefficients (.grad or .coef)")
    return raw.decode("latin-1")


def _why_not(text: str, bad: int | None) -> str:
    if bad:
        return (
            f"line {bad} is not a coefficient: expected one such as '1 A( 3, 0) -0.1 z' or 'alpha_z 3 0 -0.1', "
            f"found {excerpt(text.splitlines()[bad - 1].strip())}"
        )
    for vendor, sign in _OTHERS.items():
        if sign.search(text):
            return f"looks like {vendor}; only Siemens coefficients (.grad, .coef) can be read"
    return "holds no coefficients; expected a Siemens .grad (rows such as '1 A( 3, 0) -0.1 z') or .coef file"


def _radius(text: str, statement: float | None, name: str) -> float:
    """R0 in mm."""
    lnorm = _LNORM.search(text)
    if lnorm and lnorm.group(1) != "4":
        raise InputError(f"{name}: normalisation lnorm = {lnorm.group(1)}; only Siemens' lnorm = 4 is known")
    match = _RADIUS.search(text)
    try:
        radius = float(match.group(1)) * 1000.0 if match else statement
    except ValueError:
        raise InputError(f"{name}: the radius in {excerpt(match.group(0))} is not a number") from None
    if radius is None:
        raise InputError(f"{name}: states no radius (a line with 'm = R0'); give it: radius= in mm")
    if not (np.isfinite(radius) and 50.0 <= radius <= 1000.0):
        raise InputError(f"{name}: radius R0 of {radius:g} mm; expected 50 to 1000 mm")
    if match and statement is not None and abs(statement - radius) > 1e-3:
        raise InputError(f"{name}: says R0 = {radius:g} mm, but radius={statement:g} was given; leave it out")
    return radius


def _coefficients(rows, name: str) -> dict:
    table: dict = {}
    for number, key, text in rows:
        letter, n, m, axis = key
        try:
            value = float(text)
        except ValueError:
            raise InputError(f"{name}: line {number}: {excerpt(text)} is not a number") from None
        if m > n or n > HIGHEST_DEGREE:
            raise InputError(
                f"{name}: line {number}: {letter}({n},{m}) is no harmonic of degree <= {HIGHEST_DEGREE} and order <= n"
            )
        if key in table:
            raise InputError(f"{name}: line {number}: {letter}({n},{m}) along {axis} for the second time")
        if not np.isfinite(value) or abs(value) > 10.0:
            raise InputError(f"{name}: line {number}: {letter}({n},{m}) = {excerpt(text)}; expected fractions of R0")
        table[key] = value
    return table


# Degrees and orders that a coil symmetric about its planes has: (letter, axis, orders).
_SYMMETRIC = (("A", "x", (1, 3, 5)), ("B", "y", (1, 3, 5)), ("A", "z", (0, 2, 4)))
HEAD = 110.0  # mm from the isocentre, where the size of a random distortion is stated


def random_coil(rng: np.random.Generator, largest: float | None = None, degree: int = 9) -> GradientCoil:
    """Made-up coils: odd harmonics of a symmetric design that fall off with degree, and a little of every other.

    Args:
        rng: decides everything.
        largest: the largest displacement within 110 mm of the isocentre, mm; None: log-uniform from 0.5 to 6 mm.
        degree: the highest degree drawn, 3 or more.

    Real head and body coils displace by up to 1 to 10 mm there (Jovicich 2006). No vendor's values went in.
    """
    fall = float(rng.uniform(0.1, 0.35))  # from one odd degree to the next, at HEAD
    coefficients: dict = {}
    for letter, axis, orders in _SYMMETRIC:
        for n in range(3, degree + 1, 2):
            for m in (m for m in orders if m <= n):
                shrink = fall ** ((n - 3) / 2) * (1.0 if m == orders[0] else 0.3)
                coefficients[letter, n, m, axis] = float(rng.normal() * shrink)
    for axis in "xyz":  # what symmetry forbids, as windings are never perfect
        for n in range(2, min(degree, 5) + 1):
            for m in range(n + 1):
                for letter in "AB" if m else "A":
                    key = (letter, n, m, axis)
                    coefficients[key] = coefficients.get(key, 0.0) + float(0.03 * rng.normal())
    plain = coil(HEAD, coefficients, "random coil")
    goal = float(np.exp(rng.uniform(np.log(0.5), np.log(6.0)))) if largest is None else float(largest)
    sphere = torch.from_numpy(rng.normal(size=(3, 2000)))
    peak = plain.displacement_at(HEAD * sphere / sphere.norm(dim=0)).norm(dim=0).max()
    return GradientCoil(HEAD, plain.weights * (goal / float(peak)), "random coil")
