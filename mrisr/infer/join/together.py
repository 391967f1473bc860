"""What a caller says of several scans that are to be joined."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Together:
    """How stacks are joined.

    Attributes:
        reference: which of them says where, in what orientation and on what grid the answer lies.
        registered: whether the head is looked for; False: the headers say where it is.
        force: join what does not fit, with a warning.
    """

    reference: int = 0
    registered: bool = True
    force: bool = False
