"""mrisr: super-resolution of brain MRI volumes. Research software, not a medical device.

>>> import mrisr
>>> sharper = mrisr.upscale("scan.nii.gz", voxel_size=0.7)  # doctest: +SKIP

Importing it is cheap: PyTorch and the other libraries are loaded by the first call that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Volume", "__version__", "load_model", "upscale", "view"]

if TYPE_CHECKING:
    from mrisr.api import upscale
    from mrisr.report.notebook import view
    from mrisr.volume import Volume
    from mrisr.weights.registry import load as load_model

_LAZY = {
    "upscale": ("mrisr.api", "upscale"),
    "load_model": ("mrisr.weights.registry", "load"),
    "Volume": ("mrisr.volume", "Volume"),
    "view": ("mrisr.report.notebook", "view"),
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    try:
        value = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "mrisr").split(".")[0] == "mrisr":
            raise
        raise ImportError(
            f"mrisr.{name} needs {error.name}, which is not installed; install what mrisr depends on: pip install ."
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
