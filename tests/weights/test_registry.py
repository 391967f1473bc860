"""Weights: loaded by name or path, and every kind of damage told apart."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mrisr.errors import ModelError
from mrisr.nn.presets import build
from mrisr.weights import registry

META = {"format": 1, "preset": "tiny", "sigma_data": 0.1}


def write(path, meta=META, change=None, header=True):
    tensors = {k: v.clone() for k, v in build("tiny").state_dict().items()}
    if change:
        change(tensors)
    save_file(tensors, path, metadata={"mrisr": json.dumps(meta)} if header else None)
    return path


def test_a_file_a_folder_and_a_loaded_model(tmp_path):
    path = write(tmp_path / "weights.safetensors")
    by_file, by_folder = registry.load(path), registry.load(str(tmp_path))
    assert by_file.sha256 == by_folder.sha256 and by_file.meta == META
    assert registry.load(by_file) is by_file and by_file.card is None
    assert not by_file.denoiser.training and by_file.denoiser.sigma_data == 0.1


def test_the_shipped_weights_load_have_a_card_and_fit_the_budget():
    assert "base" in registry.available()
    model = registry.load("base")
    assert model.meta["preset"] == "student" and model.card is not None and model.card.name == "base.md"
    assert sum(p.numel() for p in model.denoiser.parameters()) <= 8_000_000
    text = model.card.read_text()
    for needed in ("licence", "PDDL", "CC-BY", "not a medical device", "mrisr train"):
        assert needed.lower() in text.lower(), needed


def poison(tensors):
    tensors["exit.weight"][0, 0, 0, 0, 0] = float("nan")


def shrink(tensors):
    tensors["exit.weight"] = torch.zeros(8, 4, 3, 3, 3)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"header": False}, "without the 'mrisr' header"),
        ({"meta": {**META, "format": 9}}, "weights of format 9"),
        ({"meta": [1]}, "format 'list'"),
        ({"meta": {**META, "sigma_data": -1}}, "valid preset or sigma_data"),
        ({"meta": {**META, "preset": "huge"}}, "expected one of"),
        ({"change": poison}, "exit.weight holds NaN"),
        ({"change": shrink}, "do not fit preset 'tiny'"),
        ({"change": lambda t: t.pop("exit.bias")}, "do not fit preset 'tiny'"),
    ],
)
def test_damage_is_told_apart(tmp_path, options, words):
    with pytest.raises(ModelError, match=words):
        registry.load(write(tmp_path / "w.safetensors", **options))


def test_truncated_not_weights_and_missing(tmp_path):
    path = write(tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        registry.load(path)
    path.write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        registry.load(path)
    with pytest.raises(ModelError, match="neither shipped"):
        registry.load("best")
    with pytest.raises(ModelError, match="neither shipped"):
        registry.load("../errors")
