"""Packages that send, write or import something of their own accord, loaded so that they do not.

Nothing that mrisr does leaves the machine, and nothing is written outside of its outputs and its cache.

OpenVINO's Python package sends usage events through the package `openvino_telemetry` when it is imported and when it
converts a model, writes an identifier into ~/intel, and starts a process for that, which where `spawn` is the start
method runs the caller's script again. While that package cannot be imported, OpenVINO uses an empty stand-in of its
own. A program that has imported openvino before is silenced from here on; what its own import sent is its own affair.
nibabel imports pydicom wherever that is installed, with its decoders and what they import in turn (0.2 s, 34 MB), for
a kind of NIfTI extension that mrisr passes on as it is.
PyTorch makes an empty folder in TMPDIR when torch._dynamo is imported, which optimisers and exporters do.
ONNX Runtime keeps a device identifier and a store of events in ~/.cache, unless a variable forbids it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

TELEMETRY = "openvino_telemetry"
USERS = "openvino.tools.ovc"  # whose modules hold the telemetry package as `tm`
STAND_IN = "openvino.tools.ovc.telemetry_stub"

_importing = threading.RLock()


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
