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
from tests.fuzz.mutate import reshaped, some_bytes

ROUNDS = int(os.environ.get("MRISR_FUZZ_ROUNDS", "1"))
EXAMPLE = Path(__file__).with_name("config.json").read_bytes()


@pytest.mark.parametrize("make", [some_bytes, reshaped])
def test_any_configuration_is_read_or_refused(make):
    rng, refused = random.Random(7), 0
    for _ in range(500 * ROUNDS):
        text = make(EXAMPLE, rng)
        try:
            config = bundle.check_config(text, "config.json")
        except ModelError as error:
            refused += 1
            assert str(error).startswith("config.json") and "\n" not in str(error) and len(str(error)) < 2000
        else:
            schema.check(config, Config, "again")
    assert refused > 300 * ROUNDS


@pytest.mark.parametrize("file", ["config.json", "weights.safetensors", "model.onnx"])
def test_any_bundle_is_read_or_refused(copy, file):
    """Damage that comes with the right hashes: only what is behind them stands in its way."""
    rng, path = random.Random(8), copy / file
    whole, config = path.read_bytes(), json.loads((copy / "config.json").read_text())
    head = len(whole) if file == "config.json" else 9000  # where everything but numbers stands
    for _ in range(25 * ROUNDS):
        path.write_bytes(some_bytes(whole[:head], rng) + whole[head:])
        if file != "config.json":
            config["files"][file] = bundle.describe_file(path) | {"bytes": max(1, path.stat().st_size)}
            (copy / "config.json").write_text(json.dumps(config))
        try:
            model = registry.load(copy)
        except ModelError as error:
            assert "\n" not in str(error)
        else:
            assert model.denoiser.sigma_data > 0
