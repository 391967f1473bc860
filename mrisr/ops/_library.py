"""`torch.library.custom_op`, which does not import torch._dynamo before something is compiled.

PyTorch wraps the implementation of a custom operator so that torch.compile does not look into it, and imports
torch._dynamo for that at the first call: two seconds, 180 MB and a folder torchinductor_USER in TMPDIR, which a program
that compiles nothing has no use for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch


def custom_op(name: str, *, mutates_args: Iterable[str]) -> Callable:
    """As `torch.library.custom_op`, of which it is a decorator."""

    def register(function: Callable):
        operator = torch.library.custom_op(name, function, mutates_args=mutates_args)
        for wrapper in operator._backend_fns.values():
            # Where a later PyTorch wraps otherwise there is nothing to set here, and only the time is lost.
            implementation = getattr(wrapper, "__wrapped__", None)
            if implementation is not None:
                implementation.__dynamo_disable = _hidden_from_dynamo(implementation)
        return operator

    return register


def _hidden_from_dynamo(function: Callable) -> Callable:
    """`function`, hidden from torch.compile once that is in use."""
    hidden = None

    def call(*args, **kwargs):
        nonlocal hidden
        if hidden is None and "torch._dynamo" in sys.modules:
            hidden = torch._dynamo.disable(function, wrapping=False)
        return (hidden or function)(*args, **kwargs)

    return call
