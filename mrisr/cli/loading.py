"""What the way of a scan needs, imported in as little time and memory as the libraries allow.

Of `import torch` a quarter of the processor time is loading its library, which waits for no other code: where the
process is the program `mrisr` (`own_process`) a thread does it while the scan is read (`torch_ahead`). Another quarter
are meta functions of operators, which only compiling, exporting and tracing ask for. They cannot be left for later:
they, the decompositions and the primitives import each other, and do so in one order only, that of `import torch`.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from importlib import import_module
from importlib.util import find_spec

from mrisr import third_party

LIBRARY = ("lib", "libtorch_cpu.so")

_owned = False


def load(*modules: str) -> None:
    """Import `modules`, which stand on nibabel and, some, on PyTorch.

    Importing makes hundreds of thousands of objects of which none is garbage: looking for it takes a tenth of the time.
    Where the process is ours they are never looked through again, not at its end either (0.1 s a time).
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        third_party.nibabel()
        for name in modules:
            import_module(name)
    finally:
        if _owned:
            gc.freeze()
        if collecting:
            gc.enable()


def own_process() -> None:
    """Say that this process is the program `mrisr`, and nobody else's Python: `load` and `torch_ahead` may do more."""
    global _owned
    _owned = True


def torch_ahead() -> None:
    """Before a scan is read, in a process of our own: have PyTorch's library loaded by a thread."""
    if _owned and "torch" not in sys.modules and sys.platform == "linux":
        threading.Thread(target=_load_library, name="torch library").start()


def _load_library() -> None:
    """Map and relocate it. Called as a C function, dlopen lets Python go on; importing torch then finds it loaded, or
    loads it (and says what is wrong) itself."""
    import ctypes

    spec = find_spec("torch")
    path = os.path.join(os.path.dirname(spec.origin), *LIBRARY) if spec is not None and spec.origin else ""
    if os.path.isfile(path):
        ctypes.CDLL(None).dlopen(os.fsencode(path), os.RTLD_NOW)
