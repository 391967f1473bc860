"""Which backend runs an operator: argument > `use_backend` > MRISR_BACKEND > the first that supports the
call.

A backend's `supports` answers "may I?" for one call: None, or the reason why not. The same answer serves
both questions: when nobody asked for a backend, a reason means "try the next"; when one was asked for, it
becomes the error. A backend that was asked for is never replaced by another.

MRISR_BACKEND is one name for every family ("reference") or a list by family
("group_norm=native,noise=reference").
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

from mrisr.errors import BackendError, UsageError

NAMES = ("native", "cuda", "triton", "sdpa", "reference")


@dataclass(frozen=True)
class Backend:
    """available(): None or why it cannot run on this machine at all. accepts(*args, **kwargs): None or why
    it cannot run this call (the arguments of `run`). Neither imports, allocates or raises."""

    name: str
    run: Callable
    available: Callable[[], str | None]
    accepts: Callable[..., str | None]

    def supports(self, *args, **kwargs) -> str | None:
        return self.available() or self.accepts(*args, **kwargs)


def reference_backend(run: Callable) -> Backend:
    """The last backend of every family: PyTorch is there, or nothing of this would have been imported, and it takes
    every call."""
    return Backend("reference", run, lambda: None, lambda *args, **kwargs: None)


@dataclass(frozen=True)
class Family:
    """An operator and its backends, best first; the last one is the PyTorch reference and takes
    everything. prefer(*args, **kwargs): the name of the backend that was measured to be faster for this
    call than those before it, or None. onnx: the function that the exporter's translation table gets for the
    operator `mrisr::<name>`, where it is in a network."""

    name: str
    backends: tuple[Backend, ...]
    prefer: Callable[..., str | None] | None = None
    onnx: Callable | None = None

    def __post_init__(self) -> None:
        FAMILIES[self.name] = self

    def names(self) -> str:
        return ", ".join(backend.name for backend in self.backends)


FAMILIES: dict[str, Family] = {}
_context: ContextVar[dict[str, str]] = ContextVar("mrisr_backend")


def parse(text: str, source: str) -> dict[str, str]:
    """ "native" -> {"*": "native"}; "noise=reference,blend=native" -> {"noise": "reference", "blend":
    "native"}."""
    table: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        family, _, name = part.rpartition("=")
        if name not in NAMES:
            raise UsageError(f"{source}: unknown backend {name!r}; expected one of {', '.join(NAMES)}")
        table[family.strip() or "*"] = name
    return table


@contextmanager
def use_backend(text: str) -> Iterator[None]:
    """Inside the block, operators run on this backend (text as in MRISR_BACKEND), or raise BackendError."""
    token = _context.set({**_context.get({}), **parse(text, "use_backend")})
    try:
        yield
    finally:
        _context.reset(token)


def asked_for(family: str, argument: str | None) -> tuple[str, str] | None:
    """(backend name, who asked for it), or None where nobody asked."""
    if argument:
        return argument, "the backend argument"
    for choice, source in (
        (_context.get({}), "use_backend"),
        (parse(os.environ.get("MRISR_BACKEND", ""), "MRISR_BACKEND"), "MRISR_BACKEND"),
    ):
        name = choice.get(family) or choice.get("*")
        if name:
            return name, source
    return None


def choose(family: Family, argument: str | None, *args, **kwargs) -> Backend:
    """The backend that runs this call. Raises BackendError where the one that was asked for cannot."""
    request = asked_for(family.name, argument)
    if request is None:
        first = family.prefer(*args, **kwargs) if family.prefer else None
        for backend in sorted(family.backends, key=lambda b: b.name != first):
            if backend.supports(*args, **kwargs) is None:
                return backend
        return family.backends[-1]  # the reference raises the operator's own error
    name, source = request
    backend = next((b for b in family.backends if b.name == name), None)
    why = f"it has only {family.names()}" if backend is None else backend.supports(*args, **kwargs)
    if why is None:
        return backend
    able = [b.name for b in family.backends if b.name != name and b.supports(*args, **kwargs) is None]
    raise BackendError(
        f"{family.name}: backend {name!r} (asked for by {source}) cannot run: {why}. "
        f"Backends that can: {', '.join(able) or 'none'}"
    )


@cache
def triton_reason() -> str | None:
    """None where Triton kernels run on this machine's GPU (or by Triton's interpreter), else why not."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreted():
        return None
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def backend_table() -> list[tuple[str, str, str | None]]:
    """(family, backend, None or the reason why it cannot run on this machine), every family x backend: first those
    that the family has, best first, then those that nobody wrote for it."""
    rows = []
    for family in sorted(FAMILIES.values(), key=lambda f: f.name):
        rows += [(family.name, backend.name, backend.available()) for backend in family.backends]
        own = {backend.name for backend in family.backends}
        rows += [(family.name, name, f"not written: it has {family.names()}") for name in NAMES if name not in own]
    return rows
