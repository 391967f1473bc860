"""Send DICOM files to a peer by C-STORE."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrisr.errors import UsageError

WARNINGS = (0xB000, 0xB006, 0xB007)  # stored, with something coerced or left out


class NotSent(Exception):
    """The peer has not stored all of it; worth another try."""


class Away(NotSent):
    """The peer is not there, or takes nothing from this node: other series would fare no better."""


class Backoff:
    """When to try again: waits that grow from the first of `seconds` to the second, each twice the last."""

    def __init__(self, seconds: tuple[float, float]) -> None:
        self._seconds, self._wait, self._until = seconds, seconds[0], 0.0

    def due(self) -> bool:
        """Whether the wait is over."""
        return time.monotonic() >= self._until

    def failed(self) -> float:
        """Begin a wait: its seconds."""
        wait = self._wait
        self._until, self._wait = time.monotonic() + wait, min(2 * wait, self._seconds[1])
        return wait

    def succeeded(self) -> None:
        """Begin anew with the shortest wait."""
        self._wait, self._until = self._seconds[0], 0.0


@dataclass(frozen=True)
class Peer:
    """Where a result goes."""

    aet: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Peer:
        """AET@host:port; UsageError says what is wrong."""
        match = re.fullmatch(r"([^@\\]{1,16})@\[?([^@\]]+?)\]?:(\d{1,5})", text)
        plain = text.isascii() and text.isprintable()  # what a title can be, and what no peer would be found by later
        if not plain or not match or not match[1].strip() or not 0 < int(match[3]) < 65536:
            excerpt = text if plain else ascii(text)
            raise UsageError(f"--send-to {excerpt}: expected AET@host:port, such as ORTHANC@127.0.0.1:4242")
        return cls(match[1].strip(), match[2], int(match[3]))

    def __str__(self) -> str:
        return f"{self.aet}@{self.host}:{self.port}"


def send(files: Sequence[Path], peer: Peer, calling: str, timeout: float, stopped: Callable[[], bool]) -> None:
    """Store every file at the peer, in one association. NotSent: not all of them were. Away: the peer is not there."""
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
    from pynetdicom import AE

    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout
    entity.connection_timeout = timeout
    for kind in sorted({str(dcmread(path, specific_tags=[0x00080016]).SOPClassUID) for path in files}):
        entity.add_requested_context(kind, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    try:
        association = entity.associate(peer.host, peer.port, ae_title=peer.aet)
    except OSError as error:  # a name that nobody resolves, for one
        raise Away(f"{peer} cannot be reached ({error.strerror or error})") from error
    if not association.is_established:
        refused = association.is_rejected
        raise Away(f"{peer} {'rejects the association' if refused else 'cannot be reached'}")
    try:
        for path in files:
            if stopped():
                raise Away("the node is stopping")
            try:
                status = association.send_c_store(path).get("Status")
            except (ValueError, RuntimeError) as error:  # no context for it, or the association is gone
                raise NotSent(f"{peer}: {error}") from error
            if status is None:
                raise Away(f"{peer} vanished")
            if status != 0 and status not in WARNINGS:
                raise NotSent(f"{peer} answers status 0x{status:04X}")
    finally:
        if association.is_established:
            association.release()
