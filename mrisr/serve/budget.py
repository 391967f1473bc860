"""How much all connections together may hold in memory."""

from __future__ import annotations

import threading

from mrisr.errors import InputError


class Budget:
    """Bytes that all connections together may hold."""

    def __init__(self, most: int) -> None:
        self.most, self.in_use = most, 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Add to what is held; InputError where it would be too much."""
        with self._lock:
            if self.in_use + count > self.most:
                raise InputError(
                    f"images of more than {self.most / 1e6:.0f} MB, of all connections together, would be held; send "
                    "fewer at once or start the server with a larger --hold"
                )
            self.in_use += count

    def give(self, count: int) -> None:
        """Take `count` off what is held."""
        with self._lock:
            self.in_use -= count
