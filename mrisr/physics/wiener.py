"""Noise out of a scan: an empirical Wiener filter in overlapping blocks of 4 x 4 x 4 voxels, with a pilot to say what
is signal.

Each block's cosine coefficients are kept by p^2 / (p^2 + v), p the pilot's and v the noise's variance there, its mean
as it is, and every voxel is the average of the 64 blocks that hold it, each counted by how little noise it holds (after
Yaroslavsky et al., Proc. SPIE 4304, 2001; the blocks and weights of Manjon et al., Med. Image Anal. 16(1), 2012,
"ODCT3D"; the pilot of Ghael, Sayeed and Baraniuk, Proc. SPIE 3169, 1997). The pilot is the network's answer, seen by
the scanner, and for a second pass what the first leaves. The network alone takes too little out of noisy scans and
detail out of clean ones; what it takes for signal is right. Beneath the answer of a network that leaves noise in, the
scan is its own pilot.

csrc/core/wiener.cpp has the same; what is here in NumPy is what it is held to, and runs where it is not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mrisr import native
from mrisr.physics.degrade import SLICE_KINDS
from mrisr.physics.foreground import CERTAIN
from mrisr.physics.psf import PSF

BLOCK = 4
MOST_BLOCKS, FEWEST_BLOCKS = 40_000, 64  # that the noise is known by: so many are enough, fewer are too few
HIGHEST = 10  # coefficients of a block that hold least anatomy
# Anatomy adds to a block's energy and never takes away: noise is what the quietest tenth hold. And the same of the mean
# of ten squares of normal numbers: chi-squared with ten degrees of freedom, at 0.1, over 10.
QUIET, QUIET_ENERGY = 0.1, 0.486518
HELD = 0.5  # share of white noise that a coefficient must hold to tell of it, as a part of what the best holds
ALIKE = 0.999  # what two axes of one band hold, in this proportion at least, is the same but for rounding
# How much of the noise's standard deviation the second pass supposes: what is found is mostly above the true one, and
# all of it a second time takes detail from scans with little noise.
SECOND = 0.9
LINES = 16  # of blocks, at a time where NumPy does it
# What anatomy alone gives as noise at least, of 1 mm and by which power of the voxel's length it grows: the least that
# heads without noise and training scans cut to 1 to 3 mm show (experiments/noise_floor.py). Across slices a profile
# passes little that is fine: there the voxel within them counts.
ANATOMY, GROWTH = 0.006, 1.3
TINY = 1e-20  # where neither pilot nor noise is anything
FREQUENCIES = 512  # between 0 and half a cycle, to integrate over


def noise_bands(psf: PSF, voxel_size: Sequence[float]) -> tuple[float, float, float]:
    """Cycles per voxel up to which a scan holds noise, per axis: 0.5, or less where the scanner has interpolated it.

    Args:
        psf: of the scan, as assumed.
        voxel_size: of the scan, mm.
    """
    widths = (p.width if p.kind == "kspace" else 0.0 for p in psf)
    return tuple(0.5 * min(1.0, float(v) / w) if w > v else 0.5 for v, w in zip(voxel_size, widths, strict=True))


def noise_level(scan: np.ndarray, bands: Sequence[float], least: float = 0.0) -> float | None:
    """Standard deviation of the noise in the band of `scan`, as if it were white; None with too little foreground.

    Mean energy of the ten highest cosine coefficients that the band holds, of the quietest tenth of the blocks in the
    foreground, less what anatomy has there at least. Most heads have more, so that of a scan without noise some is
    found.

    Args:
        scan: float32 [x, y, z], normalised.
        bands: from `noise_bands`.
        least: from `anatomy`.
    """
    shares = cosine_shares(tuple(bands))
    energies = cosine_energies(np.ascontiguousarray(scan, np.float32), shares, highest(shares))
    if energies.size < FEWEST_BLOCKS:
        return None
    power = np.quantile(energies.astype(np.float64), QUIET) / QUIET_ENERGY
    return float(np.sqrt(max(0.0, power - least**2)))


def anatomy(psf: PSF, voxel_size: Sequence[float]) -> float:
    """What `noise_level` would find, at least, without any noise, as a part of the intensity scale: the voxel counts
    that the band resolves, of slices that within them. Arguments as of `noise_bands`."""
    resolved = [float(v) * 0.5 / band for v, band in zip(voxel_size, noise_bands(psf, voxel_size), strict=True)]
    within = [length for p, length in zip(psf, resolved, strict=True) if p.kind not in SLICE_KINDS] or resolved
    return ANATOMY * float(np.prod(within)) ** (GROWTH / len(within))


def without_noise(
    scan: np.ndarray, pilot: np.ndarray, sigma: float, bands: Sequence[float], threads: int = 1
) -> np.ndarray:
    """`wiener` twice, the second time with what the first leaves as the pilot; arguments, result, errors as there."""
    first = wiener(scan, pilot, sigma, bands, threads)
    return wiener(scan, first, SECOND * sigma, bands, threads)


def wiener(scan: np.ndarray, pilot: np.ndarray, sigma: float, bands: Sequence[float], threads: int = 1) -> np.ndarray:
    """`scan` without what is noise by `pilot`: float32 [x, y, z].

    Args:
        scan, pilot: float32 [x, y, z], in one unit.
        sigma: standard deviation of the noise in the band, as if it were white, in that unit.
        bands: from `noise_bands`.

    Raises:
        ValueError: two shapes, or not three axes.
    """
    scan, pilot = (np.ascontiguousarray(v, np.float32) for v in (scan, pilot))
    if scan.shape != pilot.shape or scan.ndim != 3:
        raise ValueError(f"wiener: expected two volumes of one shape, found {scan.shape} and {pilot.shape}")
    variance = (sigma**2 * cosine_shares(tuple(bands))).astype(np.float32)
    if native.reason() is not None:
        return _wiener(scan, pilot, variance)
    out = np.empty_like(scan)
    addresses = (v.ctypes.data for v in (out, scan, pilot))
    native.module().wiener(*addresses, scan.shape, variance.tolist(), max(1, threads))
    return out


@lru_cache(maxsize=8)
def cosine_shares(bands: tuple[float, float, float]) -> np.ndarray:
    """Which share of the variance of white noise each coefficient holds [64] when every axis is cut at its band."""
    frequency = 0.5 * (np.arange(FREQUENCIES) + 0.5) / FREQUENCIES
    waves = np.exp(2j * np.pi * frequency[:, None] * np.arange(BLOCK))
    power = np.abs(waves @ cosines().T) ** 2  # [frequency, coefficient]
    axes = [(power * (frequency < band)[:, None]).sum(0) / power.sum(0) for band in bands]
    return np.einsum("i,j,k->ijk", *axes).ravel().astype(np.float32)


def highest(shares: np.ndarray) -> list[int]:
    """The ten coefficients of highest frequency (the sum over the axes) that hold noise.

    In a narrow band fewer than ten do; then those that hold most. Never the mean, which is brightness.
    """
    order = np.indices((BLOCK,) * 3).sum(0).ravel()
    least = min(HELD * shares.max(), ALIKE * np.sort(shares[1:])[-HIGHEST])
    inside = 1 + np.flatnonzero(shares[1:] >= least)
    return sorted(inside[np.argsort(-order[inside], kind="stable")][:HIGHEST].tolist())


def cosine_energies(scan: np.ndarray, shares: np.ndarray, selection: list[int]) -> np.ndarray:
    """Mean square of the selected coefficients over their shares, of blocks of the foreground that do not overlap."""
    counts = [n // BLOCK for n in scan.shape]
    if 0 in counts:
        return np.empty(0, np.float32)
    stride = max(1, -(-int(np.prod(counts)) // MOST_BLOCKS))
    if native.reason() is None:
        energies = np.empty(MOST_BLOCKS, np.float32)
        how = MOST_BLOCKS, scan.ctypes.data, scan.shape, CERTAIN, shares.tolist(), selection
        return energies[: native.module().cosine_energies(energies.ctypes.data, *how)]
    blocks = sliding_window_view(scan, (BLOCK,) * 3)[::BLOCK, ::BLOCK, ::BLOCK].reshape(-1, *(BLOCK,) * 3)[::stride]
    blocks = blocks[blocks.mean(axis=(1, 2, 3)) > CERTAIN]
    coefficients = _transform(blocks).reshape(-1, BLOCK**3)[:, selection]
    return (coefficients**2 / shares[selection]).mean(axis=1)


@lru_cache(maxsize=1)
def cosines() -> np.ndarray:
    """The orthonormal cosine transform (type II) of a block's edge: [coefficient, voxel], float64."""
    k, n = np.arange(BLOCK)[:, None], np.arange(BLOCK)
    matrix = np.cos(np.pi * (2 * n + 1) * k / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    matrix[0] /= np.sqrt(2)
    return matrix


def _transform(blocks: np.ndarray) -> np.ndarray:
    c = cosines()
    return np.einsum("ai,bj,ck,...ijk->...abc", c, c, c, blocks, optimize=True)


def _inverse(coefficients: np.ndarray) -> np.ndarray:
    c = cosines()
    return np.einsum("ai,bj,ck,...abc->...ijk", c, c, c, coefficients, optimize=True)


def _wiener(scan: np.ndarray, pilot: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """In NumPy, float64, some lines of blocks at a time: what is summed up are the planes that these reach."""
    margin = BLOCK - 1
    padded, hint = (np.pad(v, margin, mode="reflect") for v in (scan, pilot))
    out, inside = np.empty(scan.shape, np.float32), (slice(margin, -margin),) * 2
    total, weight = (np.zeros((BLOCK, *padded.shape[1:])) for _ in range(2))
    variance = variance.reshape((BLOCK,) * 3)
    for i in range(padded.shape[0] - margin):
        for j in range(0, padded.shape[1] - margin, LINES):
            y, p = (_transform(_blocks(v[i : i + BLOCK, j : j + LINES + margin])) for v in (padded, hint))
            power = p**2 + TINY
            gain = power / (power + variance)
            gain[..., 0, 0, 0] = 1.0
            counts = 1.0 / (gain**2).sum(axis=(-3, -2, -1))
            answer = _inverse(gain * y) * counts[..., None, None, None]
            for a, b, c in np.ndindex(BLOCK, BLOCK, BLOCK):
                where = a, slice(j + b, j + b + counts.shape[0]), slice(c, c + counts.shape[1])
                total[where] += answer[..., a, b, c]
                weight[where] += counts
        if i >= margin:  # no further block holds the first of the planes
            out[i - margin] = total[0][inside] / weight[0][inside]
        for sums in (total, weight):
            sums[:-1] = sums[1:]
            sums[-1] = 0
    return out


def _blocks(planes: np.ndarray) -> np.ndarray:
    """Those that begin in the first of four planes, float64 [y, z, 4, 4, 4]."""
    return sliding_window_view(planes.astype(np.float64), (BLOCK,) * 3)[0]
