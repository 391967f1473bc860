"""Packages that send, write or import something of their own accord, loaded so that they do not.

Nothing that mrisr does leaves the machine, and nothing is written outside of its outputs and its cache.

OpenVINO's Python package sends usage events through the package `openvino_telemetry` when it is imported and when it
converts a model, writes an identifier into ~/intel, and starts a process for that, which where `spawn` is the start
method runs the caller's script again. While that package cannot be imported, OpenVINO uses an empty stand-in of its
own. A program that has imported openvino before is silenced from here on; what its own import sent is its own affair.
nibabel imports pydicom wherever that is installed, with its decoders and what they import in turn (0.2 s, 34 MB), for
a kind of NIfTI extension that mrisr passes on as it is.
PyTorch makes an empty folder in TMPDIR when torch._dynamo is imported, which optimisers and exporters do.
NumPy's OpenBLAS keeps threads of its own, a second pool that spins beside the one that the work is done by, and
(0.3.31) was twice seen to wait for itself for ever on a busy machine.
ONNX Runtime keeps a device identifier and a store of events in ~/.cache, unless a variable forbids it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

TELEMETRY = "openvino_telemetry"
USERS = "openvino.tools.ovc"  # whose modules hold the telemetry package as `tm`
STAND_IN = "openvino.tools.ovc.telemetry_stub"

BLAS_THREADS = "scipy_openblas_{}_num_threads64_"  # of the OpenBLAS that NumPy's wheels bring

_importing = threading.RLock()
_multiplying = threading.RLock()


def openvino() -> ModuleType:
    """The package openvino, unable to send anything. ImportError where it is not installed."""
    with without_telemetry():
        return import_module("openvino")


@contextmanager
def without_telemetry() -> Iterator[None]:
    """OpenVINO's telemetry can neither be imported nor used inside: around imports and conversions."""
    with _importing:
        absent = TELEMETRY not in sys.modules
        if absent:
            sys.modules[TELEMETRY] = None  # how Python marks what cannot be imported
        try:
            _silence()
            yield
        finally:
            if absent:
                del sys.modules[TELEMETRY]
            _silence()


def _silence() -> None:
    """Put OpenVINO's own stand-in where a module of it has found the telemetry package."""
    for name, module in list(sys.modules.items()):
        if name.startswith(USERS) and getattr(getattr(module, "tm", None), "__name__", "") == TELEMETRY:
            module.tm = import_module(STAND_IN)


def nibabel() -> ModuleType:
    """The package nibabel, without pydicom where nobody has loaded either: for programs, which own their process.

    In that process nibabel then has no `Nifti1DicomExtension`; pydicom itself can be imported afterwards.
    """
    if "nibabel" in sys.modules or "pydicom" in sys.modules:
        return import_module("nibabel")
    with _importing:
        sys.modules["pydicom"] = None
        try:
            return import_module("nibabel")
        finally:
            del sys.modules["pydicom"]


def onnxruntime() -> ModuleType:
    """The package onnxruntime, unable to send or to keep anything. ImportError where it is not installed."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded
    return import_module("onnxruntime")


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Inside, torch._dynamo makes no folder for compiled kernels: around work that imports it and compiles nothing.

    Also a decorator. A folder that the caller has named in TORCHINDUCTOR_CACHE_DIR stays in use.
    """
    variable = "TORCHINDUCTOR_CACHE_DIR"
    user_choice = variable in os.environ
    if not user_choice:
        os.environ[variable] = os.sep  # a folder that is there: none is made
    try:
        yield
    finally:
        if not user_choice:
            os.environ.pop(variable, None)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """NumPy multiplies and solves in the calling thread inside; where it has another BLAS, as that does it."""
    functions = _blas_threads()
    if functions is None:
        yield
        return
    get, put = functions
    with _multiplying:  # what one puts back is what it found, not what another has put there
        before = get()
        put(1)
        try:
            yield
        finally:
            put(before)


@cache
def _blas_threads() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """(get, set) of the number of threads of NumPy's own OpenBLAS."""
    folder = Path(import_module("numpy").__file__).parents[1] / "numpy.libs"
    for path in folder.glob("*openblas*"):
        library = ctypes.CDLL(str(path))  # which NumPy has loaded
        names = [BLAS_THREADS.format(word) for word in ("get", "set")]
        if all(hasattr(library, name) for name in names):
            return tuple(getattr(library, name) for name in names)
    return None
