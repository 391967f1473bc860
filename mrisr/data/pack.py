"""Training volumes in one small file that numpy alone can read: decoded once, scaled, quantised below their noise.

A pack is an npz archive: "about" (JSON as uint8), and per volume i "data<i>" and "centres<i>" (int16 [K, 3]). Of a scan
the data are uint8 [2, X, Y, Z], the low and the high bytes of int16, apart because they compress better so: `step`
times the integers are the normalised intensities of `TrainingVolume`. Of a label map they are its labels, uint8
[X, Y, Z].
"""

from __future__ import annotations

import io
import json
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from msgspec import Meta, Struct
from msgspec.structs import asdict

from mrisr import schema
from mrisr.data.labels import LabelVolume
from mrisr.data.volumes import TrainingVolume
from mrisr.errors import InputError, UsageError, because, excerpt
from mrisr.io.atomic import replacing
from mrisr.physics.intensity import estimate_noise
from mrisr.schema import text

PACK_SUFFIX = ".pack"
FORMAT = 2
STEPS_PER_NOISE = 8  # quantisation adds 1 / (8 sqrt 12) of the noise: 0.07 % to its amplitude
LARGEST_ARRAY, LONGEST_AXIS = 1 << 31, 2048  # bytes, voxels
LARGEST_RATIO = 1032  # of deflate
Size = Annotated[float, Meta(gt=0, le=1e3)]
# RuntimeError and NotImplementedError: an entry that claims to be encrypted, or packed in an unknown way.
_DAMAGED = (OSError, EOFError, ValueError, LookupError, RuntimeError, SyntaxError, MemoryError, zipfile.BadZipFile)
_DAMAGED = (*_DAMAGED, zlib.error, tokenize.TokenError)  # NumPy reads its headers as Python literals
LARGEST = 50_000_000  # bytes of a pack that is quickly carried about


def step_of(volume: TrainingVolume) -> float:
    """Quantisation step of a volume: an eighth of its noise, and int16 has to reach its largest value."""
    noise = estimate_noise(volume.data) or 0.0
    return max(noise / STEPS_PER_NOISE, float(volume.data.abs().max()) / 32767)


def write_pack(path: Path, volumes: list, licences: dict[str, str], *, force: bool = False) -> int:
    """Write a pack of scans and label maps whole or not at all; returns its size in bytes.

    Args:
        licences: beginning of a volume's name -> name of its licence; "" is for all others. Where nothing is said the
            pack says "not stated".

    Raises:
        UsageError: the name does not end in .pack, or a beginning fits no volume.
        OutputError: the file cannot be written, or exists and `force` is not given.
    """
    if path.suffix != PACK_SUFFIX:
        raise UsageError(f"{path}: the name of a pack ends in {PACK_SUFFIX}")
    for prefix in licences:
        if not any(v.name.startswith(prefix) for v in volumes):
            raise UsageError(f"licence: no scan's name begins with {prefix!r}; found {[v.name for v in volumes]}")
    arrays, about = {}, []
    for i, volume in enumerate(volumes):
        fitting = max((p for p in licences if volume.name.startswith(p)), key=len, default=None)
        entry = {
            "name": volume.name,
            "kind": "labels" if isinstance(volume, LabelVolume) else "scan",
            "voxel_size": list(volume.voxel_size),
            "true_mm": list(volume.true_mm),
            "step": 1.0,
            "licence": "not stated" if fitting is None else licences[fitting],
        }
        arrays[f"centres{i}"] = volume.centres.cpu().numpy().astype(np.int16)
        if isinstance(volume, LabelVolume):
            arrays[f"data{i}"] = volume.data.cpu().numpy()
        else:
            entry["step"] = step_of(volume)
            integers = np.round(volume.data.cpu().numpy() / entry["step"]).astype("<i2")
            arrays[f"data{i}"] = np.moveaxis(integers.view(np.uint8).reshape(*integers.shape, 2), -1, 0)
        about.append(entry)
    header = json.dumps({"format": FORMAT, "volumes": about}).encode()
    memory = io.BytesIO()
    np.savez_compressed(memory, about=np.frombuffer(header, np.uint8), **arrays)
    with replacing(path, force=force) as beside:
        beside.write_bytes(memory.getbuffer())
    return memory.getbuffer().nbytes


class Entry(Struct):
    """What a pack says of a volume."""

    name: text(r"[^\x00-\x1f\x7f]{1,400}", "one line of text")
    kind: Literal["scan", "labels"]
    voxel_size: tuple[Size, Size, Size]  # mm
    true_mm: tuple[Size, Size, Size]
    step: Annotated[float, Meta(gt=0, le=1)]  # normalised intensity
    licence: str = "not stated"


class About(Struct):
    """The entry "about" of a pack."""

    format: Literal[FORMAT]
    volumes: Annotated[list[Entry], Meta(max_length=10_000)]


def describe(path: Path) -> list[dict]:
    """What a pack says of each volume: name, kind, voxel_size, true_mm, step, licence. InputError: no pack."""
    with _opened(path) as archive:
        return [asdict(entry) for entry in _about(archive, path)]


def read_pack(path: Path) -> list:
    """The volumes of a pack. InputError where it is none, or damaged."""
    with _opened(path) as archive:
        return [_volume(archive, path, i, entry) for i, entry in enumerate(_about(archive, path))]


def _volume(archive: zipfile.ZipFile, path: Path, i: int, entry: Entry) -> TrainingVolume | LabelVolume:
    try:
        labels = entry.kind == "labels"
        data = _array(archive, f"data{i}", np.uint8, 3 if labels else 4)
        centres = _array(archive, f"centres{i}", np.int16, 2).astype(np.int64)
        shape = data.shape[-3:]
        if (not labels and len(data) != 2) or not min(shape) >= 1 or max(shape) > LONGEST_AXIS:
            raise ValueError(f"data of shape {data.shape}")
        if not len(centres) or centres.shape[1] != 3 or (centres < 0).any() or (centres >= np.array(shape)).any():
            raise ValueError("centres outside of the volume")
    except _DAMAGED as error:
        raise InputError(
            f"{path}: volume {i} of the pack is damaged ({because(error)}); pack the scans again"
        ) from error
    places = torch.from_numpy(centres)
    if labels:
        return LabelVolume(torch.from_numpy(data.copy()), entry.voxel_size, places, entry.name)
    integers = data[0].astype(np.int16) | (data[1].astype(np.int16) << 8)
    scaled = torch.from_numpy(integers.astype(np.float32) * np.float32(entry.step))
    return TrainingVolume.of(scaled, entry.voxel_size, entry.true_mm, places, entry.name)


def _array(archive: zipfile.ZipFile, name: str, dtype: type, axes: int) -> np.ndarray:
    """One array of a pack. What its header promises is checked before it is read; errors are those of `_DAMAGED`."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"{name}: an array of version {version}")
        shape, by_columns, dtype_of_array = np.lib.format.read_array_header_1_0(stream)
        promised = math.prod(shape) * np.dtype(dtype).itemsize
        if dtype_of_array != np.dtype(dtype) or len(shape) != axes or not 0 < promised <= LARGEST_ARRAY:
            raise ValueError(f"{name}: {dtype_of_array} of shape {shape}")
        if promised > entry.file_size or entry.file_size > LARGEST_RATIO * entry.compress_size:
            raise ValueError(f"{name}: holds fewer bytes than it promises")
        raw = stream.read(promised + 1)
    if len(raw) != promised:
        raise ValueError(f"{name}: {len(raw)} bytes, expected {promised}")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if by_columns else "C")


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not a readable pack ({reason}); make one with `mrisr pack`") from error


def _about(archive: zipfile.ZipFile, path: Path) -> list[Entry]:
    try:
        text = _array(archive, "about", np.uint8, 1).tobytes()
    except _DAMAGED as error:
        raise InputError(f"{path}: not a pack, or damaged ({because(error)}); make one with `mrisr pack`") from error
    header = schema.parse(text, f"{path}: about")
    if isinstance(header, dict) and header.get("format") != FORMAT:
        version = excerpt(header.get("format"))
        raise InputError(f"{path}: a pack of format {version}; this mrisr reads format {FORMAT}")
    return schema.check(header, About, f"{path}: about").volumes
