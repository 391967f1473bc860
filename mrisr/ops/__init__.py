"""Operators: a folder or a file per family, each with a PyTorch reference and the backends that beat it.

Call an operator by its family's module: `from mrisr.ops.group_norm import group_norm`. Importing this
package imports no torch.
"""

from __future__ import annotations

from importlib import import_module

MODULES = ("attention3d", "group_norm", "noise", "resample.spline", "rms_norm", "sampling", "tiles")

__all__ = ["backend_table", "families", "onnx_translations", "use_backend"]


def families() -> dict[str, object]:
    """Every operator with backends, by name (`mrisr.ops._dispatch.Family`)."""
    for name in MODULES:
        import_module(f"mrisr.ops.{name}")
    return dict(sorted(import_module("mrisr.ops._dispatch").FAMILIES.items()))


def backend_table() -> list[tuple[str, str, str | None]]:
    """Rows (operator, backend, None or the reason why it cannot run on this machine), for `mrisr doctor`."""
    families()
    return import_module("mrisr.ops._dispatch").backend_table()


def onnx_translations() -> dict[object, object]:
    """What `torch.onnx.export(..., dynamo=True, custom_translation_table=...)` needs for the operators that networks
    are made of."""
    import torch

    return {getattr(torch.ops.mrisr, name).default: f.onnx for name, f in families().items() if f.onnx is not None}


def use_backend(text: str):
    """Context manager: inside it, operators run on this backend ("native", or
    "noise=reference,blend=native"), or raise."""
    return import_module("mrisr.ops._dispatch").use_backend(text)
