"""The values of a header, one parser per kind: text, words, a number, several numbers.

pydicom's own conversion follows the value representation that a file claims, raises a dozen different errors, and lets
a list pass where one value is due. Here the raw bytes are read by what the attribute means, whatever the file claims,
and what cannot be read is refused in one line that names file, tag and value.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from typing import Any

from mrisr.errors import InputError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?")
LONGEST = 64  # characters of one number; DICOM allows 16
BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}


class Values:
    """Attributes of the first of several data sets (frame, shared, file) that has them.

    layers  pydicom data sets, innermost first
    where   what messages call the file (and frame)

    Every getter gives None (or an empty tuple) where the attribute is absent or empty.
    """

    def __init__(self, layers: Sequence[Any], where: str) -> None:
        self.layers, self.where = tuple(layers), where

    def has(self, key: str) -> bool:
        """Whether the attribute is there, with a value or without."""
        return self._element(key) is not None

    def layer(self, key: str) -> Any:
        """The data set that has the attribute, or None."""
        pair = self._element(key, with_layer=True)
        return None if pair is None else pair[0]

    def words(self, key: str) -> tuple[str, ...]:
        """Code words, in capitals."""
        values = self._values(key)
        return () if values == [""] else tuple(str(v).strip().upper() for v in values)

    def word(self, key: str) -> str:
        """The first code word, or "" """
        return next(iter(self.words(key)), "")

    def uid(self, key: str) -> str:
        """A UID, or "" """
        return next((str(v).strip().rstrip("\0") for v in self._values(key)), "")

    def text(self, key: str) -> str:
        """Free text in the file's character set, on one line; "" where there is none."""
        layer, element = self._element(key, with_layer=True) or (None, None)
        if element is None:
            return ""
        try:
            value = layer[element.tag].value  # pydicom knows the character sets
        except Exception:  # noqa: BLE001 - free text in a damaged file: shown as it stands, decided upon nowhere
            value = _raw_text(element)
        return " ".join(str("" if value is None else value).split())[:1024]

    def number(self, key: str) -> float | None:
        """One finite number."""
        numbers = self._numbers(key, "one number")
        if len(numbers) > 1:
            raise self.refusal(key, "one number")
        return numbers[0] if numbers else None

    def whole(self, key: str) -> int | None:
        """One whole number."""
        number = self.number(key)
        if number is not None and not number.is_integer():
            raise self.refusal(key, "a whole number")
        return None if number is None else int(number)

    def numbers(self, key: str, count: int | None = None) -> tuple[float, ...]:
        """Exactly `count` finite numbers (None: any)."""
        expected = "numbers" if count is None else f"{count} numbers"
        numbers = self._numbers(key, expected)
        if count is not None and numbers and len(numbers) != count:
            raise self.refusal(key, expected)
        return numbers

    def required(self, key: str, count: int) -> tuple[float, ...]:
        """As `numbers`, but they have to be there."""
        numbers = self.numbers(key, count)
        if not numbers:
            raise InputError(f"{self.where}: no {label(key)}; export the series again with its geometry")
        return numbers

    def refusal(self, key: str, expected: str) -> InputError:
        """The error for a value that cannot be used."""
        element = self._element(key)
        value = _excerpt(element)
        return InputError(
            f"{self.where}: {label(key)}: expected {expected}, found {value}; correct the header, or export again"
        )

    def _numbers(self, key: str, expected: str) -> tuple[float, ...]:
        values = self._values(key)
        if values == [""]:
            return ()
        numbers = []
        for value in values:
            if isinstance(value, str) and (len(value) > LONGEST or not NUMBER.fullmatch(value)):
                raise self.refusal(key, expected)
            try:
                numbers.append(float(value))
            except (TypeError, ValueError, OverflowError) as error:
                raise self.refusal(key, expected) from error
            if not math.isfinite(numbers[-1]):
                raise self.refusal(key, expected)
        return tuple(numbers)

    def _values(self, key: str) -> list[Any]:
        element = self._element(key)
        return [] if element is None else _values(element, self.where, key)

    def _element(self, key: str, with_layer: bool = False):
        from pydicom.datadict import tag_for_keyword
        from pydicom.tag import Tag

        tag = Tag(tag_for_keyword(key))
        for layer in self.layers:
            element = layer.get_item(tag)
            if element is not None:
                return (layer, element) if with_layer else element
        return None


def label(key: str) -> str:
    """An attribute as messages name it: keyword and tag."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(key)
    return f"{key} ({tag >> 16:04x},{tag & 0xFFFF:04x})"


def _values(element: Any, where: str, key: str) -> list[Any]:
    """The values of a raw or converted element: numbers, or texts without padding; [] where it is empty."""
    value = element.value
    if value is None or (isinstance(value, (bytes, str)) and not value):
        return []
    if isinstance(value, bytes):
        kind = BINARY.get(element.VR) or BINARY.get(_dictionary_vr(key) if element.VR in (None, "UN") else "")
        if kind:
            if len(value) % struct.calcsize(kind):
                raise InputError(f"{where}: {label(key)}: {len(value)} bytes are no number; export the series again")
            order = "<" if getattr(element, "is_little_endian", True) else ">"
            return list(struct.unpack(f"{order}{len(value) // struct.calcsize(kind)}{kind}", value))
        return [v.strip(" \0\t\r\n") for v in value.decode("latin-1").split("\\")]
    if isinstance(value, str):
        return [v.strip() for v in value.split("\\")]
    if isinstance(value, Sequence):
        return [v.strip() if isinstance(v, str) else v for v in value]
    return [value]


def _dictionary_vr(key: str) -> str:
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    return dictionary_VR(tag_for_keyword(key)).split()[0]


def _raw_text(element: Any) -> str:
    value = element.value
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _excerpt(element: Any) -> str:
    """A value for a message: short, on one line."""
    value = None if element is None else element.value
    if value is None or value in (b"", ""):
        return "nothing"
    if isinstance(value, bytes):
        text = value[:80].decode("latin-1")
        if element.VR in BINARY or not text.rstrip(" \0").isprintable():
            return f"{len(value)} bytes"
        text = text.rstrip(" \0")
    else:
        text = "\\".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return repr(text if len(text) <= 48 else text[:45] + "...")
