"""JSON that somebody else wrote: parsed within limits, checked once against a type, and refused in one line.

A schema is a type that msgspec knows: a `Struct`, or a plain annotation with limits (`Annotated[int, Meta(ge=1)]`).
There is one per kind of file, beside the code that reads the file; nothing behind that door asks again.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta, inspect

from mrisr.errors import InputError, MrisrError, excerpt

DEPTH = 16  # of nested objects and lists
LARGEST = 1 << 20  # bytes of a document

_UNKNOWN = object()  # what stands at a place that msgspec does not name
_MARK = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_FAILURE = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>[\w.\[\]]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def text(pattern: str, meaning: str) -> Any:
    """The type of a string all of which matches `pattern`; `meaning` is what an error says was expected."""
    return Annotated[str, Meta(pattern=rf"\A(?:{pattern})\Z", description=meaning)]


def strict(kind: type) -> type:
    """A `Struct` with the fields, types and defaults of the dataclass `kind`, which knows no others."""
    hints = get_type_hints(kind, include_extras=True)
    definitions = [(f.name, hints[f.name], *(() if f.default is MISSING else (f.default,))) for f in fields(kind)]
    return msgspec.defstruct(kind.__name__, definitions, kw_only=True, forbid_unknown_fields=True)


def read(path: Path, *, error: type[MrisrError] = InputError, largest: int = LARGEST, **limits) -> Any:
    """The JSON document in a file of at most `largest` bytes; `limits` are those of `parse`. Raises `error`."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(largest + 1)
    except (OSError, ValueError) as failure:
        raise error(f"{path}: cannot be read ({getattr(failure, 'strerror', None) or failure})") from failure
    if len(content) > largest:
        raise error(f"{path}: more than {largest} bytes; expected a smaller JSON document")
    return parse(content, str(path), error=error, **limits)


def parse(
    content: bytes, where: str, *, error: type[MrisrError] = InputError, depth: int = DEPTH, lenient=False
) -> Any:
    """JSON as RFC 8259 has it: UTF-8, finite numbers, no name twice in an object, `depth` levels at most.

    Args:
        where: begins every error.
        lenient: take what other programs write too: a byte order mark, NaN, Infinity, a name twice (the last counts).
    """
    try:
        text = content.decode("utf-8-sig" if lenient else "utf-8")
    except UnicodeDecodeError as failure:
        raise error(f"{where}: not UTF-8 ({failure.reason} at byte {failure.start})") from failure
    level = 0  # Python's parser recurses: refuse what nests too deeply before it sees it
    for mark in _MARK.finditer(text):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
        if level > depth:
            raise error(f"{where}: nests more than {depth} levels deep")
    hooks = {} if lenient else dict(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once)
    try:
        value = json.loads(text, **hooks)
        if r"\u" in text:  # half a surrogate pair is a string that nothing can write
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError as failure:
        raise error(f"{where}: not JSON (half of a surrogate pair in a text)") from failure
    except _Refusal as failure:
        raise error(f"{where}: {failure}") from None
    except ValueError as failure:  # JSONDecodeError, and whole numbers of thousands of digits
        raise error(f"{where}: not JSON ({_one_line(failure)})") from failure


def check(value: Any, kind: Any, where: str, *, error: type[MrisrError] = InputError) -> Any:
    """`value` (of dicts, lists, strings, numbers) as the type `kind`; nothing is cast: no "1" for 1, no 8.0 for 8.

    Raises:
        error: names the place below `where`, what was expected there and what was found.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as failure:
        raise error(_explanation(str(failure), value, kind, where)) from None


class _Refusal(Exception):
    """Raised inside the JSON parser; `parse` adds the place."""


def _no_constant(name: str):
    raise _Refusal(f"{name} is not a number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refusal(f"{excerpt(digits)} is too large for a number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict:
    table = dict(pairs)
    if len(table) != len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        raise _Refusal(f"the name {excerpt(twice)} stands twice in one object")
    return table


def _one_line(failure: object) -> str:
    text = " ".join(str(failure).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _explanation(failure: str, value: Any, kind: Any, where: str) -> str:
    """msgspec's one error in mrisr's words: the place, what is due there, what stands there."""
    match = _FAILURE.fullmatch(failure)
    what, path = match["what"], match["path"] or ""
    place = where + re.sub(r"^\.", ": ", path) if path else where
    due = inspect.type_info(kind)
    for name, index in _STEP.findall(path):
        value, due = _descend(value, due, name or index)
    if match["key"]:
        keys = [o.key_type for o in _options(due) if isinstance(o, inspect.DictType)]
        odd = [k for k in value if not _fits(k, keys[0])] if isinstance(value, dict) else []
        return f"{place}: expected {_description(keys[0])}, found {excerpt(odd[0]) if odd else 'another name'}"
    if detail := re.fullmatch(r"Object missing required field `(.*)`", what, re.DOTALL):
        return f"{place}: lacks {detail[1]}"
    if detail := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        return f"{place}: has the unknown field {excerpt(detail[1])}"
    if not re.match(r"Expected|Invalid enum value|Number out of range|Integer value out of range", what):
        return f"{place}: {_one_line(what)}"  # of a dataclass's own check
    detail = "" if value is _UNKNOWN else f", found {_count(value) if ' of length ' in what else excerpt(value)}"
    return f"{place}: expected {_description(due)}{detail}"


def _options(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    kind = kind.type if isinstance(kind, inspect.Metadata) else kind
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _descend(value: Any, kind: inspect.Type, step: str) -> tuple[Any, inspect.Type]:
    """The value and its type one step further down; in a table msgspec does not say at which name."""
    for option in _options(kind):
        if step == "..." and isinstance(option, inspect.DictType):
            return _UNKNOWN, option.value_type
        if step.isdigit() and isinstance(option, inspect.ListType | inspect.VarTupleType | inspect.TupleType):
            own = option.item_types[int(step)] if isinstance(option, inspect.TupleType) else option.item_type
            return (value if value is _UNKNOWN else value[int(step)]), own
        if isinstance(option, inspect.StructType):
            types = [f.type for f in option.fields if f.encode_name == step]
            if types:
                return (value if value is _UNKNOWN else value.get(step, _UNKNOWN)), types[0]
    return _UNKNOWN, inspect.AnyType()


def _fits(key: str, kind: inspect.Type) -> bool:
    kind = kind.type if isinstance(kind, inspect.Metadata) else kind
    pattern = getattr(kind, "pattern", None)
    return pattern is None or re.search(pattern, key) is not None


def _description(kind: inspect.Type) -> str:
    """What an error says was expected."""
    if isinstance(kind, inspect.Metadata):
        return (kind.extra_json_schema or {}).get("description") or _description(kind.type)
    if isinstance(kind, inspect.UnionType):
        return " or ".join(map(_description, kind.types))
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(map(repr, kind.values))
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return ("a whole number" if isinstance(kind, inspect.IntType) else "a number") + _range(kind)
    if isinstance(kind, inspect.CustomType):
        return f"a {kind.cls.__name__}"
    if isinstance(kind, inspect.TupleType):
        return f"a list of {len(kind.item_types)}"
    name = _NAMES.get(type(kind), "another value")
    least, most = getattr(kind, "min_length", None), getattr(kind, "max_length", None)
    if least is None and most is None:
        return name
    span = f"{least}" if least == most else f"{least or 0} to {most}" if most is not None else f"at least {least}"
    return f"{name} of {span} {'characters' if isinstance(kind, inspect.StrType) else 'entries'}"


_NAMES = {
    inspect.StrType: "text",
    inspect.BoolType: "true or false",
    inspect.NoneType: "null",
    inspect.ListType: "a list",
    inspect.VarTupleType: "a list",
    inspect.DictType: "an object",
    inspect.StructType: "an object",
}


def _range(kind) -> str:
    low, above, high, below = kind.ge, kind.gt, kind.le, kind.lt
    if low is not None and high is not None:
        return f" from {low:.15g} to {high:.15g}"
    words = [
        f"{word} {limit:.15g}"
        for word, limit in (("above", above), ("at least", low), ("at most", high), ("below", below))
        if limit is not None
    ]
    return " " + " and ".join(words) if words else ""


def _count(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, dict | list | tuple | str) else excerpt(value)
