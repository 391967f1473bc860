"""Bundles that somebody else wrote: whatever is in them, a reader gives a ModelError or a bundle, nothing else.

`MRISR_FUZZ_ROUNDS` multiplies the number of cases (1 takes seconds).
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from mrisr import bundle, schema
from mrisr.bundle.config import Config
from mrisr.errors import ModelError
from mrisr.weights import registry

ROUNDS = int(os.environ.get("MRISR_FUZZ_ROUNDS", "1"))
EXAMPLE = Path(__file__).with_name("config.json").read_bytes()
PIECES = (b"", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\u0000", b"\x00", b"\xff\xfe", b"1e999", b"-1", b"NaN",
          b"null", b"true", b"../", b"[" * 64, b'{"a":' * 64, b"9" * 6000, "\N{PILE OF POO}".encode())  # fmt: skip
VALUES = (None, True, False, 0, -1, 1.5, 2**63, 10**30, -1e308, "", "../x", "a" * 5000, "\x00", [], {}, [[]], {"": {}})


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, dropped, repeated, moved, or replaced by what parsers trip over."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        j = min(j, i + rng.choice((1, 4, 64, 1000)))
        how = rng.randrange(5)
        if how == 0 and i < len(data):
            data[i] = rng.randrange(256)
        elif how == 1:
            del data[i:j]
        elif how == 2:
            data[i:i] = data[i:j]
        elif how == 3:
            data[i:j] = rng.choice(PIECES)
        else:
            data[i:i] = rng.choice(PIECES)
        if not data:
            break
    return bytes(data)


def reshaped(config, rng: random.Random) -> bytes:
    """Valid JSON in which some places hold something else, are gone, or hold what stands elsewhere."""
    config = json.loads(EXAMPLE)
    for _ in range(rng.choice((1, 1, 2, 5))):
        places = list(_places(config))
        holder, key = rng.choice(places)
        other, at = rng.choice(places)
        how = rng.randrange(4)
        if how == 0:
            holder[key] = rng.choice(VALUES)
        elif how == 1:
            holder[key] = json.loads(json.dumps(other[at]))
        elif how == 2 and isinstance(holder, dict):
            holder[str(rng.choice(VALUES))] = holder[key]
        else:
            del holder[key]
    return json.dumps(config).encode()


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(items):
        yield value, key
        yield from _places(entry)


@pytest.mark.parametrize("make", [mutated, reshaped])
def test_any_configuration_is_read_or_refused(make):
    rng, refused = random.Random(7), 0
    for _ in range(1500 * ROUNDS):
        text = make(EXAMPLE, rng)
        try:
            config = bundle.check_config(text, "config.json")
        except ModelError as error:
            refused += 1
            assert str(error).startswith("config.json") and "\n" not in str(error) and len(str(error)) < 2000
        else:
            schema.check(config, Config, "again")
    assert refused > 1000 * ROUNDS


@pytest.mark.parametrize("file", ["config.json", "weights.safetensors", "model.onnx"])
def test_any_bundle_is_read_or_refused(copy, file):
    """Damage that comes with the right hashes: only what is behind them stands in its way."""
    rng, path = random.Random(8), copy / file
    whole, config = path.read_bytes(), json.loads((copy / "config.json").read_text())
    head = len(whole) if file == "config.json" else 9000  # where everything but numbers stands
    for _ in range(25 * ROUNDS):
        path.write_bytes(mutated(whole[:head], rng) + whole[head:])
        if file != "config.json":
            config["files"][file] = bundle.describe_file(path) | {"bytes": max(1, path.stat().st_size)}
            (copy / "config.json").write_text(json.dumps(config))
        try:
            model = registry.load(copy)
        except ModelError as error:
            assert "\n" not in str(error)
        else:
            assert model.denoiser.sigma_data > 0
