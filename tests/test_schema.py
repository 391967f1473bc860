"""The door for JSON: what it refuses, and the one line it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from mrisr import schema
from mrisr.errors import InputError, ModelError


class Part(Struct, forbid_unknown_fields=True):
    size: Annotated[int, Meta(ge=1, le=8)]
    kind: Literal["a", "b"] = "a"


class Whole(Struct, forbid_unknown_fields=True):
    name: schema.text(r"[a-z]+", "a word")
    parts: Annotated[list[Part], Meta(max_length=2)] = []  # noqa: RUF012 - msgspec copies it
    table: dict[schema.text(r"[a-z]", "a letter"), float] = {}  # noqa: RUF012
    pair: tuple[float, float] | None = None


@pytest.mark.parametrize(
    "value,line",
    [
        ([], "f: expected an object, found a list"),
        ({}, "f: lacks name"),
        ({"name": "x", "more\n": 1}, "f: has the unknown field 'more\\n'"),
        ({"name": "x", "a` - at `$.b": 1}, "f: .*has the unknown field 'a'"),
        ({"name": "x\n"}, "f: name: expected a word, found 'x\\n'"),
        (
            {"name": "x", "parts": [{"size": 1}, {"size": True}]},
            "f: parts[1].size: expected a whole number from 1 to 8, found True",
        ),
        ({"name": "x", "parts": [{"size": 10**5000}]}, "f: parts[0].size: .*, found a number of more than 50 digits"),
        ({"name": "x", "parts": [{"size": 1, "kind": "c"}]}, "f: parts[0].kind: expected 'a' or 'b', found 'c'"),
        ({"name": "x", "parts": [{"size": 1}] * 3}, "f: parts: expected a list of 0 to 2 entries, found 3 of them"),
        ({"name": "x", "table": {"q": 1, "rr": 2}}, "f: table: expected a letter, found 'rr'"),
        ({"name": "x", "table": {"q": "1"}}, "f: table[...]: expected a number"),
        ({"name": "x", "pair": [1]}, "f: pair: expected a list of 2 or null, found 1 of them"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(value, line):
    with pytest.raises(ModelError) as refused:
        schema.check(value, Whole, "f", error=ModelError)
    text = str(refused.value)
    before, _, after = line.partition(".*")
    assert text.startswith(before) and text.endswith(after) and "\n" not in text


def test_what_is_right_passes_as_its_type():
    found = schema.check({"name": "x", "parts": [{"size": 8}], "pair": [1, 2.5]}, Whole, "f")
    assert found == Whole("x", [Part(8)], {}, (1.0, 2.5))


@pytest.mark.parametrize(
    "held,words",
    [
        (b"", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 17, "nests more than 16 levels"),
        (b'"' + b"[" * 1000 + b'"', None),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b"[NaN]", "NaN is not a number"),
        (b"[-1e999]", "too large for a number"),
        (b"9" * 5000, "not JSON"),
        (b'["\\ud800"]', "half of a surrogate pair"),
        (b'["\\ud83d\\ude00"]', None),
    ],
)
def test_json_within_limits(held, words):
    if words is None:
        schema.parse(held, "f")
        return
    with pytest.raises(InputError, match=f"^f: .*{words}"):
        schema.parse(held, "f")


def test_what_other_programs_write_passes_where_that_is_asked_for():
    assert schema.parse(b'\xef\xbb\xbf{"a": 1, "a": Infinity}', "f", lenient=True) == {"a": float("inf")}


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b" " * 100 + b"1")
    assert schema.read(path) == 1
    with pytest.raises(InputError, match="more than 100 bytes"):
        schema.read(path, largest=100)
    with pytest.raises(InputError, match="cannot be read"):
        schema.read(tmp_path / "b.json")


def test_a_dataclass_is_a_schema_that_knows_no_other_field():
    @dataclass
    class Plain:
        a: int
        b: tuple[int, ...] = (1,)

    kind = schema.strict(Plain)
    found = schema.check({"a": 2}, kind, "f")
    assert (found.a, found.b) == (2, (1,))
    with pytest.raises(InputError, match="f: has the unknown field 'c'"):
        schema.check({"a": 2, "c": 1}, kind, "f")
    with pytest.raises(InputError, match="f: b: expected a list, found 3"):
        schema.check({"a": 2, "b": 3}, kind, "f")
