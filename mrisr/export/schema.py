"""What a JSON document must look like, and a reader that trusts none: every error names its place in the document.

A specification is a tree of the classes below; `check(value, where)` returns nothing or raises `SchemaError`.
Objects hold exactly the fields that they declare.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from mrisr.errors import ModelError

DEPTH = 16  # of nested objects and lists


class SchemaError(ModelError):
    """A document is not what its format says."""


@dataclass(frozen=True)
class Number:
    """A finite number in [low, high], or (low, high] where `above`."""

    low: float
    high: float
    above: bool = False

    def check(self, value: Any, where: str) -> None:
        number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        if isinstance(value, bool) or not number:
            raise SchemaError(f"{where}: expected a number, found {_shown(value)}")
        if not self.low <= value <= self.high or (self.above and value == self.low):
            least = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
            raise SchemaError(f"{where}: expected {least} and at most {self.high:g}, found {_shown(value)}")


@dataclass(frozen=True)
class Whole:
    """A whole number in [low, high], written as one (no 8.0)."""

    low: int
    high: int

    def check(self, value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise SchemaError(f"{where}: expected a whole number from {self.low} to {self.high}, found {_shown(value)}")


@dataclass(frozen=True)
class Text:
    """A string that matches all of `pattern`; `meaning` is what the error says was expected."""

    pattern: str
    meaning: str

    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise SchemaError(f"{where}: expected {self.meaning}, found {_shown(value)}")


@dataclass(frozen=True)
class OneOf:
    """One of some values, of the same type too (1 is not True)."""

    values: tuple

    def check(self, value: Any, where: str) -> None:
        if not any(type(value) is type(v) and value == v for v in self.values):
            raise SchemaError(f"{where}: expected {' or '.join(map(repr, self.values))}, found {_shown(value)}")


@dataclass(frozen=True)
class Either:
    """Null, or what `item` says."""

    item: Any

    def check(self, value: Any, where: str) -> None:
        if value is not None:
            self.item.check(value, where)


@dataclass(frozen=True)
class Several:
    """A list of fewest to most times `item`."""

    item: Any
    fewest: int
    most: int

    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, list) or not self.fewest <= len(value) <= self.most:
            found = f"{len(value)} of them" if isinstance(value, list) else _shown(value)
            raise SchemaError(f"{where}: expected a list of {self.fewest} to {self.most} entries, found {found}")
        for i, entry in enumerate(value):
            self.item.check(entry, f"{where}[{i}]")


@dataclass(frozen=True)
class Table:
    """An object of fewest to most entries with keys of one kind and values of one kind."""

    key: Any
    item: Any
    fewest: int
    most: int

    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, dict) or not self.fewest <= len(value) <= self.most:
            found = f"{len(value)} of them" if isinstance(value, dict) else _shown(value)
            raise SchemaError(f"{where}: expected an object of {self.fewest} to {self.most} entries, found {found}")
        for name, entry in value.items():
            self.key.check(name, where)
            self.item.check(entry, f"{where}.{name}")


@dataclass(frozen=True)
class Record:
    """An object with exactly these fields."""

    fields: dict[str, Any]

    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: expected an object, found {_shown(value)}")
        missing = [name for name in self.fields if name not in value]
        if missing:
            raise SchemaError(f"{where}: lacks {', '.join(missing)}")
        unknown = [name for name in value if name not in self.fields]
        if unknown:
            raise SchemaError(f"{where}: has the unknown field {_shown(unknown[0])}")
        for name, spec in self.fields.items():
            spec.check(value[name], f"{where}.{name}")


def parse(text: bytes, where: str) -> Any:
    """JSON as RFC 8259 has it: UTF-8, finite numbers, no name twice in an object, `DEPTH` levels at most.

    Raises:
        SchemaError: anything else.
    """
    try:
        found = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SchemaError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
    _check_depth(found, where)
    try:
        return json.loads(found, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once)
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from None
    except ValueError as error:  # JSONDecodeError, and whole numbers of thousands of digits
        raise SchemaError(f"{where}: not JSON ({error})") from error


def _check_depth(text: str, where: str) -> None:
    """Python's parser recurses: refuse what nests too deeply before it sees it."""
    depth = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', text, flags=re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark, 0)
        if depth > DEPTH:
            raise SchemaError(f"{where}: nests more than {DEPTH} levels deep")


def _no_constant(name: str):
    raise SchemaError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise SchemaError(f"{_shown(text)} is too large for a number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SchemaError(f"the name {_shown(twice)} stands twice in one object")
    return found


def _shown(value: Any) -> str:
    """Short enough for one line of an error, whatever it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
