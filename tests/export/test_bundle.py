"""The bundle's configuration: complete, from the code's own constants, and every kind of damage told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrisr import bundle
from mrisr.errors import ModelError
from mrisr.export.describe import config_of
from mrisr.weights import registry

EXAMPLE = Path(__file__).with_name("config.json")
OF_THE_MODEL = ("library_version", "name", "model_version", "preset", "parameters", "opset", "trained_range", "files")


def example() -> dict:
    return json.loads(EXAMPLE.read_text(encoding="utf-8"))


def test_the_example_is_valid_and_up_to_date():
    bundle.check_config(EXAMPLE.read_bytes(), "example")
    now, then = config_of(registry.load("base"), 20, []), example()
    for config in (now, then):
        for name in OF_THE_MODEL:
            config.pop(name, None)
        for name in ("sigma_data", "sigma_min", "sigma_max", "few_steps"):
            config["diffusion"].pop(name)
    assert now == then


def change(*path, to):
    """The example with one place changed, as bytes; `to=...` (Ellipsis) deletes it."""
    config = example()
    place = config
    for step in path[:-1]:
        place = place[step]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return json.dumps(config).encode()


@pytest.mark.parametrize(
    "text,words",
    [
        (b"", "not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[1]", "not the configuration of a bundle"),
        (b'{"format": "mrisr-bundle", "format_version": 3}', "format version 3, and this mrisr reads up to 2"),
        (b'{"format": "mrisr-bundle", "format_version": 0}', "format_version: expected 2, found 0"),
        (b'{"format": "mrisr-bundle", "format_version": 2}', "lacks library_version"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 100_000, "nests more than"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": 1e999}', "too large for a number"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not"),
        (change("preset", to=...), "lacks preset"),
        (change("sampler", to=1), "unknown field 'sampler'"),
        (change("network", "norm", to="batch"), "network.norm: expected 'channel' or 'group', found 'batch'"),
        (change("network", "multiple", to=8.0), "network.multiple: expected a whole number"),
        (change("network", "multiple", to=True), "network.multiple: expected a whole number"),
        (
            change("diffusion", "sigma_data", to="0.1"),
            "diffusion.sigma_data: expected a number above 0.*, found '0.1'",
        ),
        (change("diffusion", "sigma_data", to=0), "diffusion.sigma_data: expected a number above 0"),
        (change("diffusion", "sigma_data", to=10**400), "not JSON|at most 10"),
        (change("diffusion", "sigma_min", to=5.0), "sigma_min must be below sigma_max"),
        (change("files", "../../etc/passwd", to={"bytes": 1, "sha256": "0" * 64}), "files: expected a plain file name"),
        (change("files", "model.onnx", "bytes", to=1 << 40), "bytes: expected a whole number"),
        (change("files", "model.onnx", "sha256", to="0" * 63), "expected 64 hexadecimal digits"),
        (change("files", "card.md", to=...), "files: lacks card.md|list of 3|object of 3"),
        (change("graphs", 0, "file", to="other.onnx"), "files: lacks other.onnx"),
        (change("vector", "layout", "mode", to=[2, 1]), "vector.layout: entries overlap"),
        (change("vector", "layout", "noise_known", to=[40, 1]), "passes the end of the vector"),
        (change("trained_range", "slice", to=[4, 1]), "trained_range"),
        (change("tiling", "align", to=12), "tiling.align: must be a multiple"),
        (change("name", to="a\nb"), "name: expected a word"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_place(text, words):
    with pytest.raises(ModelError, match=words):
        bundle.check_config(text, "config.json")
