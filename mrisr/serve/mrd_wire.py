"""Messages of the MRD stream on a socket, every length and every wait bounded.

A message is an identifier (uint16) and what belongs to it; all numbers are little-endian. The protocol itself bounds
nothing: a length is uint32, of attributes uint64. So a length is compared with its limit before a byte of it is read,
and voxels are taken in pieces, so that what is claimed costs nothing until it arrives.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

from mrisr.errors import InputError
from mrisr.io.mrd import IMAGE_HEADER_BYTES, MrdImage, header_of
from mrisr.serve.budget import Budget

CONFIG_FILE, CONFIG_TEXT, HEADER, CLOSE, TEXT = 1, 2, 3, 4, 5
ACQUISITION, IMAGE, WAVEFORM = 1008, 1022, 1026
NAMES = {CONFIG_FILE: "config file", CONFIG_TEXT: "config text", HEADER: "XML header", TEXT: "text"}

CONFIG_FILE_BYTES = 1024
TEXT_BYTES = 1 << 20
HEADER_BYTES = 1 << 24
ATTRIBUTE_BYTES = 1 << 22
WAVEFORM_HEAD = struct.Struct("<H6xQIIIHHfH2x")  # ..., number of samples, channels, ...
PIECE = 1 << 20


class Vanished(Exception):
    """The other side closed or broke the connection, or does not read."""


@dataclass(frozen=True)
class Limits:
    """idle: seconds without a byte, either way. receive: seconds for a whole stream. images: of one connection."""

    idle: float = 60.0
    receive: float = 3600.0
    images: int = 20000


@dataclass(frozen=True)
class Message:
    """kind: CONFIG_FILE, ..., WAVEFORM. content: text, an MrdImage, or nothing."""

    kind: int
    content: str | MrdImage | None = None


class Wire:
    """One connection. What it holds of `budget` is given back by `release`."""

    def __init__(self, sock: socket.socket, budget: Budget, limits: Limits) -> None:
        self.sock, self.budget, self.limits = sock, budget, limits
        self.share = 0
        self._until = time.monotonic() + limits.receive

    def release(self) -> None:
        """Give back what the images of this connection hold."""
        self.budget.give(self.share)
        self.share = 0

    def next(self) -> Message:
        """The next message. InputError: garbage or over a limit. Vanished: the connection ended without CLOSE."""
        (kind,) = struct.unpack("<H", self._read(2))
        if kind == CLOSE:
            return Message(kind)
        if kind == CONFIG_FILE:
            return Message(kind, _text(self._read(CONFIG_FILE_BYTES)))
        if kind in NAMES:
            (length,) = struct.unpack("<I", self._read(4))
            most = HEADER_BYTES if kind == HEADER else TEXT_BYTES
            return Message(kind, _text(self._read(_within(length, most, f"message {kind} ({NAMES[kind]})"))))
        if kind == IMAGE:
            return Message(kind, self._image())
        if kind == WAVEFORM:
            fields = WAVEFORM_HEAD.unpack(self._read(WAVEFORM_HEAD.size))
            self._skip(4 * fields[5] * fields[6])
            return Message(kind)
        if kind == ACQUISITION:
            raise InputError("raw k-space (message 1008); mrisr takes images: put it after the reconstruction")
        raise InputError(f"message {kind} is none of the MRD stream; expected 1 to 5, 1022 or 1026")

    def _image(self) -> MrdImage:
        header = header_of(self._read(IMAGE_HEADER_BYTES))
        (length,) = struct.unpack("<Q", self._read(8))
        attributes = self._read(_within(length, ATTRIBUTE_BYTES, "an image's attributes"), hold=True)
        length = MrdImage(header, b"", b"").nbytes
        data = self._read(_within(length, self.budget.most, "an image"), hold=True)
        return MrdImage(header, attributes, data)

    def _read(self, count: int, hold: bool = False) -> bytes:
        """Exactly `count` bytes; with `hold` they count as held until `release`."""
        content = bytearray()
        while len(content) < count:
            piece = self._receive(min(PIECE, count - len(content)))
            if hold:
                self.budget.take(len(piece))
                self.share += len(piece)
            content += piece
        return bytes(content)

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._receive(min(PIECE, count)))

    def _receive(self, most: int) -> bytes:
        seconds = self._until - time.monotonic()
        try:
            if seconds <= 0:
                raise TimeoutError
            self.sock.settimeout(min(self.limits.idle, seconds))
            piece = self.sock.recv(most)
        except TimeoutError:
            if seconds < self.limits.idle:
                why = f"the stream took longer than {self.limits.receive:g} s; see --receive-seconds"
            else:
                why = f"nothing came for {self.limits.idle:g} s; expected CLOSE at the end"
            raise InputError(why) from None
        except OSError as error:
            raise Vanished(error.strerror or str(error)) from error
        if not piece:
            raise Vanished("closed before the CLOSE message")
        return piece

    def send_text(self, level: str, line: str) -> None:
        """A line for the scanner's log; level DBG, WRN or ERR, by which it is coloured."""
        raw = f"{level} mrisr: {line}".encode() + b"\0"
        self._send(struct.pack("<HI", TEXT, len(raw)) + raw)

    def send_image(self, image: MrdImage) -> None:
        self._send(struct.pack("<H", IMAGE) + bytes(image.header) + struct.pack("<Q", len(image.attributes)))
        self._send(image.attributes)
        self._send(image.data)

    def send_close(self) -> None:
        self._send(struct.pack("<H", CLOSE))

    def _send(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), PIECE):  # the time-out is of a piece, not of a large image
                self.sock.settimeout(self.limits.idle)
                self.sock.sendall(data[start : start + PIECE])
        except OSError as error:
            raise Vanished(f"cannot be sent to ({error.strerror or error})") from error

    def hang_up(self, drain: float = 1.0) -> None:
        """Close so that the last message arrives: what the other side still sends is read for `drain` s, because
        closing on unread bytes throws away what was sent."""
        until = time.monotonic() + drain
        try:
            self.sock.shutdown(socket.SHUT_WR)
            while (seconds := until - time.monotonic()) > 0:
                self.sock.settimeout(seconds)
                if not self.sock.recv(PIECE):
                    break
        except OSError:
            pass  # gone already: there is nobody left to tell
        finally:
            self.sock.close()


def _text(raw: bytes) -> str:
    """Text up to its NUL, which clients send along and count."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def _within(length: int, most: int, what: str) -> int:
    if length > most:
        raise InputError(f"{what} claims {length} bytes; at most {most} are taken")
    return length
