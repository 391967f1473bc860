"""A 4D NIfTI file read frame by frame, so that memory holds one frame and the next, however many there are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from nibabel.arrayproxy import ArrayProxy

from mrisr.errors import InputError
from mrisr.io import gzipped
from mrisr.volume import Frames, as_float32, check_contrast

__all__ = ["FileFrames"]


class FileFrames(Frames):
    """The frames of the file that nibabel's `proxy` stands for, scaled as it does.

    All are read once to be checked: what is wrong with the last is said before the first is used. A thread of its own
    reads the frame that follows while one is used. A packed file is unpacked from its start to its end each time; in
    another order it is slow.

    Attributes:
        low, high: the range of all voxels.

    Raises:
        InputError: a frame is constant, or has NaN, Inf or values outside float32; later: the file has changed.
    """

    def __init__(self, proxy: Any, path: Path, name: str) -> None:
        super().__init__(proxy.shape)
        self._path, self._name = path, name
        self._stored, self._offset, self._scaling = proxy.dtype, proxy.offset, (proxy.slope, proxy.inter)
        self._stream: BinaryIO | None = None
        self.low, self.high = math.inf, -math.inf
        for t in range(self.shape[3]):
            frame = self.frame(t)
            check_contrast(frame, name, t, self.shape[3])
            self.low, self.high = min(self.low, float(frame.min())), max(self.high, float(frame.max()))
        self.close()

    def min(self) -> float:
        """The lowest voxel."""
        return self.low

    def max(self) -> float:
        """The highest voxel."""
        return self.high

    def frame(self, t: int) -> np.ndarray:
        """One frame, from the file. Not by two threads at a time."""
        shape = self.shape[:3]
        offset = self._offset + t * math.prod(shape) * self._stored.itemsize
        try:
            if self._stream is None:
                packed = str(self._path).lower().endswith(gzipped.ENDINGS)
                self._stream = gzipped.reading(self._path) if packed else self._path.open("rb")
            proxy = ArrayProxy(self._stream, (shape, self._stored, offset, *self._scaling), mmap=False)
            voxels = np.asarray(proxy)
        except (*gzipped.damaged(), ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self._name}: frame {t} of {self.shape[3]} cannot be read ({reason}); was the file changed meanwhile?"
            ) from error
        return as_float32(voxels, f"{self._name}: frame {t} of {self.shape[3]}")

    def __iter__(self) -> Iterator[np.ndarray]:
        """Each frame. Who takes the first one alone does not wait for the second."""
        with ThreadPoolExecutor(1, thread_name_prefix="mrisr read") as thread:
            following: Future | None = None
            for t in range(self.shape[3]):
                frame = thread.submit(self.frame, t).result() if following is None else following.result()
                following = thread.submit(self.frame, t + 1) if 0 < t < self.shape[3] - 1 else None
                yield frame
                del frame
        self.close()

    def close(self) -> None:
        """Close the file; the next frame opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __getitem__(self, key: Any) -> np.ndarray:
        """As of an array; of [..., t] alone that frame is read, of all else everything."""
        if isinstance(key, tuple) and len(key) == 2 and key[0] is Ellipsis and isinstance(key[1], int):
            return self.frame(range(self.shape[3])[key[1]])
        return np.asarray(self)[key]

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self.close()
