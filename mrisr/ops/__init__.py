"""Operators: one file per family, each with a PyTorch reference and the backends that beat it.

Call an operator by its family's module: `from mrisr.ops.group_norm import group_norm`. Importing this
package imports no torch.
"""

from __future__ import annotations

from importlib import import_module

FAMILY_MODULES = (
    "add_stats",
    "attention3d",
    "axis_apply",
    "blend",
    "channel_norm",
    "group_norm",
    "noise",
    "prefilter",
    "resample3d",
    "sampler_step",
)

__all__ = ["backend_table", "onnx_translations", "specs", "use_backend"]


def backend_table() -> list[tuple[str, str, str | None]]:
    """Rows (family, backend, None or the reason why it cannot run on this machine), for `mrisr doctor`."""
    from mrisr.ops import _dispatch

    for name in FAMILY_MODULES:
        import_module(f"mrisr.ops.{name}")
    return _dispatch.backend_table()


def specs() -> dict[str, object]:
    """The SPEC of every family, by name."""
    found = {}
    for name in FAMILY_MODULES:
        module = import_module(f"mrisr.ops.{name}")
        for spec in (value for key, value in vars(module).items() if key.endswith("SPEC")):
            found[spec.family.name] = spec
    return found


def onnx_translations() -> dict[object, object]:
    """What `torch.onnx.export(..., dynamo=True, custom_translation_table=...)` needs for the operators that networks
    are made of."""
    import torch

    return {getattr(torch.ops.mrisr, name).default: s.onnx for name, s in specs().items() if s.onnx is not None}


def use_backend(text: str):
    """Context manager: inside it, operators run on this backend ("native", or
    "noise=reference,blend=native"), or raise."""
    from mrisr.ops import _dispatch

    return _dispatch.use_backend(text)
