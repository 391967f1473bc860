"""Training volumes in one small file that numpy alone can read: decoded once, scaled, quantised below their noise.

A pack is an npz archive: "about" (JSON as uint8), and per volume i "data<i>" and "centres<i>" (int16 [K, 3]). Of a scan
the data are uint8 [2, X, Y, Z], the low and the high bytes of int16, apart because they compress better so: `step`
times the integers are the normalised intensities of `TrainingVolume`. Of a label map they are its labels, uint8
[X, Y, Z].
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from mrisr.data.labels import LabelVolume
from mrisr.data.sources import PACK_SUFFIX, TrainingVolume
from mrisr.errors import InputError, UsageError
from mrisr.io.atomic import replacing
from mrisr.physics.intensity import estimate_noise

FORMAT = 2
STEPS_PER_NOISE = 8  # quantisation adds 1 / (8 sqrt 12) of the noise: 0.07 % to its amplitude
_DAMAGED = (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile, zlib.error)
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


def describe(path: Path) -> list[dict]:
    """What a pack says of each volume: name, kind, voxel_size, true_mm, step, licence. InputError: no pack."""
    with _opened(path) as archive:
        return _about(archive, path)


def read_pack(path: Path) -> list:
    """The volumes of a pack. InputError where it is none, or damaged."""
    volumes = []
    with _opened(path) as archive:
        for i, entry in enumerate(_about(archive, path)):
            try:
                data = archive[f"data{i}"]
                centres = torch.from_numpy(archive[f"centres{i}"].astype(np.int64))
                labels = entry["kind"] == "labels"
                low, high = (data, data) if labels else data
            except _DAMAGED as error:
                raise InputError(
                    f"{path}: volume {i} of the pack is damaged ({error}); pack the scans again"
                ) from error
            size, name = tuple(entry["voxel_size"]), entry["name"]
            if labels:
                volumes.append(LabelVolume(torch.from_numpy(data), size, centres, name))
                continue
            integers = low.astype(np.int16) | (high.astype(np.int16) << 8)
            data = torch.from_numpy(integers.astype(np.float32) * np.float32(entry["step"]))
            volumes.append(TrainingVolume.of(data, size, tuple(entry["true_mm"]), centres, name))
    return volumes


def _opened(path: Path):
    try:
        return np.load(path, allow_pickle=False)
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not a readable pack ({reason}); make one with `mrisr pack`") from error


def _about(archive, path: Path) -> list[dict]:
    try:
        header = json.loads(archive["about"].tobytes())
        if header["format"] != FORMAT:
            raise InputError(f"{path}: a pack of format {header['format']!r}; this mrisr reads format {FORMAT}")
        return header["volumes"]
    except (*_DAMAGED, TypeError) as error:
        raise InputError(f"{path}: not a pack, or damaged ({error}); make one with `mrisr pack`") from error
