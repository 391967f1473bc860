"""Where converted graphs lie in the cache: known without OpenVINO, which reads and writes them."""

from __future__ import annotations

from pathlib import Path

from mrisr.environment import cache_folder

GRAPH, WEIGHTS, DIGEST = "model.xml", "model.bin", "model.sha256"  # of an entry of the cache


def entry_of(fingerprint: str) -> Path | None:
    """The folder of a graph in the cache, which may not be there; None: nothing is kept."""
    folder = cache_folder()
    return None if folder is None else folder / f"openvino-{fingerprint}"
