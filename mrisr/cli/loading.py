"""What the way of a scan needs, imported in as little time and memory as the libraries allow."""

from __future__ import annotations

import gc
from importlib import import_module

from mrisr import third_party


def load(*modules: str) -> None:
    """Import `modules` of mrisr, which stand on nibabel and, some, on PyTorch.

    Importing makes hundreds of thousands of objects of which none is garbage: looking for it takes a tenth of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        third_party.nibabel()
        for name in modules:
            import_module(name)
    finally:
        if collecting:
            gc.enable()
