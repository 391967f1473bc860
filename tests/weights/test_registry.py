"""Weights: loaded by name or path, and every kind of damage told apart."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mrisr.errors import ModelError
from mrisr.nn.presets import build
from mrisr.weights import registry
from mrisr.weights.publish import publish

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


def test_half_precision_is_stored_and_float32_loaded(tmp_path):
    source = write(tmp_path / "weights.safetensors")
    path = publish(tmp_path, "small", version=3, half=True, folder=tmp_path)
    assert path.stat().st_size < 0.6 * source.stat().st_size
    full, half = registry.load(source), registry.load(path)
    assert (half.meta["name"], half.meta["version"], half.meta["stored"]) == ("small", 3, "bfloat16")
    for a, b in zip(full.denoiser.parameters(), half.denoiser.parameters(), strict=True):
        assert b.dtype == torch.float32 and torch.equal(a.bfloat16().float(), b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.safetensors", "weights.safetensors"]


def test_a_second_shipped_model_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    write(tmp_path / "base.safetensors")
    publish("base", "teacher-small", half=True, folder=tmp_path)
    (tmp_path / "teacher-small.md").write_text("# card")
    assert registry.available() == ["base", "teacher-small"]
    model = registry.load("teacher-small")
    assert model.name == model.meta["name"] == "teacher-small" and model.card.name == "teacher-small.md"
    assert registry.load("base").card is None


def test_a_calibration_belongs_to_its_weights(tmp_path):
    path = write(tmp_path / "weights.safetensors")
    entry = {"samples": 4, "steps": 1, "scale": {"0.9": 2.0}}
    report = {"weights": registry.load(path).sha256, "uncertainty": {"stored": entry}}
    shipped = publish(path, "base", calibration=report, folder=tmp_path)
    assert registry.load(shipped).meta["uncertainty"] == [entry]
    again = {"weights": registry.load(shipped).sha256, "uncertainty": {"stored": {**entry, "scale": {"0.9": 3.0}}}}
    assert registry.load(publish(shipped, "base", calibration=again, folder=tmp_path)).meta["uncertainty"] == [
        again["uncertainty"]["stored"]
    ]
    with pytest.raises(ModelError, match="of other weights"):
        publish(path, "base", calibration=again, folder=tmp_path)


def integers(tensors):
    tensors["exit.weight"] = tensors["exit.weight"].to(torch.int32)


def poison(tensors):
    tensors["exit.weight"][0, 0, 0, 0, 0] = float("nan")


def shrink(tensors):
    tensors["exit.weight"] = torch.zeros(8, 4, 3, 3, 3)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"header": False}, "without the 'mrisr' header"),
        ({"meta": {**META, "format": 9}}, "weights of format 9"),
        ({"meta": [1]}, "weights of format list"),
        ({"meta": {**META, "sigma_data": -1}}, "sigma_data: expected a number above 0 and below 10, found -1"),
        ({"meta": {**META, "preset": 7}}, "preset: expected a word"),
        ({"meta": {**META, "trained_range": {"slice": [1]}}}, "trained_range"),
        ({"meta": {**META, "few_steps": "1"}}, "few_steps: expected a list"),
        ({"meta": {**META, "uncertainty": [{"samples": 8}]}}, "lacks steps"),
        ({"meta": {**META, "config": {"gradnl": "0.3"}}}, "config.gradnl: expected a number"),
        ({"meta": {**META, "preset": "huge"}}, "expected one of"),
        ({"change": integers}, "exit.weight is torch.int32"),
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
