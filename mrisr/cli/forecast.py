"""How long the network will take: from what it took before on this machine, per output voxel and evaluation.

A whole head often runs as one piece, during which nothing can be counted. The rate of earlier runs, kept in the cache,
makes a bar that moves and a time that is left; without one, a guess that the first run corrects.
"""

from __future__ import annotations

import hashlib
import json
import time

from mrisr import environment
from mrisr.errors import InputError, OutputError
from mrisr.io.atomic import replacing

GUESS = {"cpu": 6.0, "cuda": 0.05}  # seconds per million voxels: of one core, of a GPU
NEAR_END = 0.97  # where a bar that runs on a forecast waits
MOST_RATES = 64  # rates


class Forecast:
    """Rates by kind of run; `start` and `fraction` follow one network stage."""

    def __init__(self, kind: str, device: str = "auto") -> None:
        self.key = hashlib.sha256(kind.encode()).hexdigest()[:16]
        folder = environment.cache_folder()
        self.path = None if folder is None else folder / "rates.json"
        self.measurement = self._read().get(self.key)
        self.guess = GUESS["cuda"] if device.startswith("cuda") else GUESS["cpu"] / environment.cores()
        self.expected = 0.0
        self.voxels = 0
        self._stage = "network"
        self._began: float | None = None
        self._last_fraction = 0.0

    @property
    def rate(self) -> float:
        """Seconds per million voxels."""
        return self.measurement if self.measurement is not None else self.guess

    def scan(self, voxels: int) -> None:
        """A scan with so many output voxels times evaluations comes next."""
        self.voxels, self.expected, self._stage = voxels, self.rate * voxels / 1e6, "network"
        self._began, self._last_fraction = None, 0.0

    def tick(self, stage: str, fraction: float) -> None:
        """What `mrisr.upscale` tells."""
        if stage not in ("network", "adapt"):
            return
        now = time.perf_counter()
        if stage != self._stage:  # the network, learning, and the network again
            self._stage, self._began = stage, None
        if self._began is None:
            self._began = now
        self._last_fraction = fraction
        if fraction >= 1.0 and self.voxels and stage == "network":
            self.voxels, voxels = 0, self.voxels  # the end is told twice
            self._learn(1e6 * (now - self._began) / voxels)

    def fraction(self) -> float:
        """How far the network is, 0 to 1, by count and by time."""
        if self._began is None:
            return 0.0
        seconds = time.perf_counter() - self._began
        return max(self._last_fraction, min(NEAR_END, seconds / max(self._total(seconds), 1e-9)))

    def remainder(self) -> float:
        """Seconds until the network is done."""
        if self._began is None:
            return self.expected
        seconds = time.perf_counter() - self._began
        return max(0.0, self._total(seconds) - seconds)

    def _total(self, seconds: float) -> float:
        """Seconds of the stage: extrapolated where pieces have been counted, else by rate."""
        return seconds / self._last_fraction if self._last_fraction > 0.1 else self.expected

    def _learn(self, rate: float) -> None:
        self.measurement = rate if self.measurement is None else 0.5 * (self.measurement + rate)
        if self.path is None:
            return
        rates = self._read()
        rates.pop(self.key, None)
        rates[self.key] = round(self.measurement, 6)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path, force=True) as beside:
                beside.write_text(json.dumps(dict(list(rates.items())[-MOST_RATES:])), encoding="utf-8")
        except (OSError, OutputError):
            self.path = None  # a cache that cannot be used is no error (docs/environment.md)

    def _read(self) -> dict[str, float]:
        if self.path is None:
            return {}
        try:
            from mrisr import schema

            rates = schema.read(self.path)
        except InputError:  # not there yet, or cut off: a forecast less
            return {}
        return {k: v for k, v in rates.items() if isinstance(v, float) and v > 0} if isinstance(rates, dict) else {}
