"""A 4D NIfTI file written frame by frame by a thread, beside what computes the next frame.

Unpacked, its bytes are those that `mrisr.io.nifti.write` gives the whole series.
"""

from __future__ import annotations

import os
import queue
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mrisr.errors import OutputError, to_do
from mrisr.io import gzipped, nifti
from mrisr.volume import Volume

__all__ = ["FrameWriter"]

PLANES = 16  # turned at a time from our order to the file's: a line of the cache is used whole


class FrameWriter:
    """Writes the frames that it is given to `path`: a name that is the caller's to keep, and to remove on a failure.

    A context manager: leaving it ends the thread. One frame is held at most, beside the one that is being given.

    Args:
        path: ends in .nii or .nii.gz.
        source: what the frames are made of, 4D; its header goes along.
        descrip: as for `mrisr.io.nifti.write`.
    """

    def __init__(self, path: str | os.PathLike, source: Volume, descrip: str) -> None:
        self._path, self._source, self._descrip = Path(path), source, descrip
        self._waiting: queue.Queue[np.ndarray | None] = queue.Queue(maxsize=1)
        self._failed: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._count = 0

    def __enter__(self) -> FrameWriter:
        return self

    def add(self, index: int, image: np.ndarray, affine: np.ndarray) -> None:
        """Frame `index` [X, Y, Z], on the grid of `affine`; in order, and not to be written to afterwards.

        Waits for the frame before. Raises OutputError where a frame before could not be written.
        """
        if index != self._count:
            raise ValueError(f"frames come in order: expected {self._count}, found {index}")
        self._count += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, args=(image.shape, affine), name="mrisr frames")
            self._thread.start()
        self._waiting.put(image)
        self._waiting.join()  # until it is taken: what it waited for is then written
        self._raise()

    def finish(self) -> None:
        """Return when all is written. Raises OutputError."""
        self._end()
        self._raise()
        frames = self._source.data.shape[3]
        if self._count != frames:
            raise ValueError(f"{self._path}: expected {frames} frames, found {self._count}")

    def __exit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _raise(self) -> None:
        if isinstance(self._failed, OSError):
            why = self._failed.strerror or self._failed
            raise OutputError(f"{self._path}: cannot be written ({why}); {to_do(self._failed)}") from self._failed
        if self._failed is not None:
            raise self._failed

    def _write(self, shape: tuple[int, ...], affine: np.ndarray) -> None:
        """The thread: the header, then each frame; after a failure frames are taken and left."""
        ended = False
        try:
            with ExitStack() as files:
                stream = files.enter_context(self._path.open("wb"))
                if self._path.name.lower().endswith(gzipped.ENDINGS):
                    stream = files.enter_context(gzipped.writing(stream))
                is_open = False
                while (image := self._take()) is not None:
                    if not is_open:
                        first = self._source.replace(image, affine)
                        nifti.write_start(stream, first, self._source.data.shape[3], self._descrip)
                        is_open = True
                    for z in range(0, shape[2], PLANES):
                        stream.write(np.asarray(image[..., z : z + PLANES].T, "<f4", order="C").data)
                ended = True
        except BaseException as failure:  # noqa: BLE001 - told to whoever gives the next frame, or waits for the end
            self._failed = failure
            while not ended and self._take() is not None:
                pass

    def _take(self) -> np.ndarray | None:
        image = self._waiting.get()
        self._waiting.task_done()
        return image
