"""Damage, drawn from a `random.Random`: bytes, numbers in binary headers, JSON that is well formed but not what is due,
entries of zip archives whose checksums are right all the same."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable

PIECES = (b"", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\u0000", b"\x00", b"\xff\xfe", b"1e999", b"-1", b"NaN",
          b"null", b"true", b"../", b"[" * 64, b'{"a":' * 64, b"9" * 6000, b"\\ud800", b"\x00" * 300, b"\xff" * 8,
          "\N{PILE OF POO}".encode())  # fmt: skip
VALUES = (None, True, False, 0, -1, 1.5, 2**63, 10**30, 10**400, -1e308, "", "../x", "a" * 5000, "\x00", "\ud800", [],
          {}, [[]], {"": {}}, [1, "a"], float("nan"), float("inf"), 1e-320)  # fmt: skip
WHOLE = (0, 1, -1, 2, 127, 128, 255, 32767, -32768, 65535, 2**31 - 1, -(2**31))
REAL = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 3.4e38, -3.4e38, float("nan"), float("inf"), float("-inf"), 1e10, 1e-10)


def some_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, dropped, repeated, moved, or replaced by what parsers trip over."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        j = min(j, i + rng.choice((1, 4, 64, 1000)))
        how = rng.randrange(6)
        if how == 0 and i < len(data):
            data[i] = rng.randrange(256)
        elif how == 1:
            del data[i:j]
        elif how == 2:
            data[i:i] = data[i:j]
        elif how == 3:
            data[i:j] = rng.choice(PIECES)
        elif how == 4:
            data[i:i] = rng.choice(PIECES)
        else:
            del data[i:]
        if not data:
            break
    return bytes(data)


def within(first: int) -> Callable[[bytes, random.Random], bytes]:
    """`some_bytes` of the first bytes only: where everything but numbers stands."""
    return lambda data, rng: some_bytes(data[:first], rng) + data[first:]


def header_numbers(length: int, order: str = "<") -> Callable[[bytes, random.Random], bytes]:
    """One to four numbers of a binary header of `length` bytes replaced by odd ones, of any width, aligned."""

    def change(data: bytes, rng: random.Random) -> bytes:
        data = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            kind = rng.choice("hifdB")
            size = struct.calcsize(kind)
            at = rng.randrange(0, max(1, min(length, len(data)) - size), size if rng.random() < 0.9 else 1)
            value = rng.choice(REAL if kind in "fd" else WHOLE)
            if kind not in "fd":
                bits = 8 * size
                value = value % 2**bits if kind == "B" else (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
            data[at : at + size] = struct.pack(order + kind, value)
        return bytes(data)

    return change


def reshaped(data: bytes, rng: random.Random) -> bytes:
    """Well-formed JSON in which some places hold something else, are gone, or hold what stands elsewhere."""
    return json.dumps(reshape(json.loads(data), rng)).encode()


def reshape(value, rng: random.Random):
    """A copy of nested dicts and lists in which some places hold something else."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 5))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(rng.choice(VALUES))
        holder, key = rng.choice(places)
        other, at = rng.choice(places)
        how = rng.randrange(5)
        if how == 0:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif how == 1:
            holder[key] = copy.deepcopy(other[at])
        elif how == 2 and isinstance(holder, dict):
            holder[str(rng.choice(VALUES[:-3]))] = holder[key]
        elif how == 3:
            holder[key] = [holder[key]] * rng.choice((1, 3, 100))
        else:
            del holder[key]
    return value


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(items):
        yield value, key
        yield from _places(entry)


def zip_entries(inner: dict[str, Callable], compression: int) -> Callable[[bytes, random.Random], bytes]:
    """One entry of a zip archive damaged by the mutator whose key its name contains, dropped, doubled or emptied; the
    archive itself is whole."""

    def change(data: bytes, rng: random.Random) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(name, archive.read(name)) for name in archive.namelist()]
        at = rng.randrange(len(entries))
        if rng.random() < 0.6:  # rather where something is said than where numbers are
            said = [i for i, (name, _) in enumerate(entries) if any(key and key in name for key in inner)]
            at = rng.choice(said or [at])
        name, held = entries[at]
        damage = next((f for key, f in inner.items() if key in name), some_bytes)
        how = rng.randrange(12)
        if how == 0:
            del entries[at]
        elif how == 1:
            entries[at] = (name, b"")
        elif how == 2:
            other = rng.choice(entries)
            entries[at] = (name, other[1])
        else:
            entries[at] = (name, damage(held, rng))
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", compression) as archive:
            for name, held in entries:
                archive.writestr(name, held)
        return made.getvalue()

    return change
