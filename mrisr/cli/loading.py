"""What the way of a scan needs, imported in as little time and memory as the libraries allow.

Of 1.3 s of processor time that `import torch` takes, two parts are cut where the process is a program of ours
(`own_process`), which compiles nothing:

- the meta functions of operators (`torch._meta_registrations`, with `torch._decomp`, `_refs` and `_prims`), which only
  torch.compile, torch.export and meta tensors ask for: a quarter of the time, 20 MB;
- loading the library itself (another quarter), which waits for no other code and runs in a thread meanwhile
  (`torch_ahead`).
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from mrisr import third_party

METAS = "torch._meta_registrations"
# What is loaded first, of all that needs them, when something is compiled or exported after all.
NEED_METAS = ("torch._decomp", "torch._dynamo", "torch._inductor", "torch._prims", "torch._refs")
LIBRARY = ("lib", "libtorch_cpu.so")

_owned = False


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


def own_process() -> None:
    """Say that this process is the program `mrisr`, and nobody else's Python: `torch_ahead` may do as it says."""
    global _owned
    _owned = True


def torch_ahead(needed: bool = True) -> None:
    """Before a scan is read, in a process of our own: let PyTorch be imported without meta functions and, where it is
    sure to be needed, have its library loaded meanwhile by a thread."""
    if not _owned or "torch" in sys.modules or any(isinstance(finder, _NoMetas) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _NoMetas())
    if needed and sys.platform == "linux":
        threading.Thread(target=_load_library, name="torch library").start()


def _load_library() -> None:
    """Map and relocate it. Called as a C function, dlopen lets Python go on; importing torch then finds it loaded, or
    loads it (and says what is wrong) itself."""
    import ctypes

    found = find_spec("torch")
    path = os.path.join(os.path.dirname(found.origin), *LIBRARY) if found is not None and found.origin else ""
    if os.path.isfile(path):
        ctypes.CDLL(None).dlopen(os.fsencode(path), os.RTLD_NOW)


class _NoMetas(MetaPathFinder, Loader):
    """Gives PyTorch an empty module of meta functions while it is imported, and the real one when there is need."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None):
        if fullname == METAS and "torch._decomp" not in sys.modules:
            return ModuleSpec(METAS, self)
        if fullname in NEED_METAS:
            sys.meta_path.remove(self)
            if sys.modules.pop(METAS, None) is not None:
                import_module(METAS)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Empty."""
