"""Warnings of several threads, each thread's for itself.

`warnings.catch_warnings` swaps state of the whole process: with a reader, the network and a writer in threads, what one
says would land in the account of another.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mrisr.errors import MrisrWarning

__all__ = ["by_thread", "into"]

_here = threading.local()


@contextmanager
def by_thread() -> Iterator[None]:
    """Inside, a MrisrWarning goes to the list that its thread has named with `into`; others go their usual way."""
    with warnings.catch_warnings():
        before = warnings.showwarning
        warnings.filterwarnings("always", category=MrisrWarning)

        def show(message, category, filename, lineno, file=None, line=None) -> None:
            texts = getattr(_here, "texts", None)
            if texts is None or not issubclass(category, MrisrWarning):
                before(message, category, filename, lineno, file, line)
            elif str(message) not in texts:
                texts.append(str(message))

        warnings.showwarning = show
        yield


@contextmanager
def into(texts: list[str]) -> Iterator[None]:
    """This thread's MrisrWarnings go to `texts`, each once."""
    _here.texts = texts
    try:
        yield
    finally:
        _here.texts = None
