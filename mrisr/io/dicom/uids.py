"""UIDs that are made here: 2.25 and a hash, so that the same job gives the same UIDs."""

from __future__ import annotations

import hashlib

__all__ = ["uid_of"]


def uid_of(*parts: str) -> str:
    """The UID (DICOM PS3.5 B.2: 2.25 and 128 bits) of what `parts` say."""
    digest = hashlib.sha256("\0".join(["mrisr", *parts]).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"
