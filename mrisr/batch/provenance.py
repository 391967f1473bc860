"""What a result says of itself: the sidecar beside it, and the line in its header.

A sidecar is BIDS's kind of JSON: where the result came from, what made it, which band was measured and which was
synthesised. It holds no path beyond names, and no name of a user or a machine. It is also how a later run knows that
a result is still the one that it would make: the same source, weights and options.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mrisr import __version__, schema
from mrisr.batch.scans import Scan
from mrisr.errors import InputError, OutputError
from mrisr.io import nifti
from mrisr.io.atomic import check_target

__all__ = [
    "Identity",
    "as_text",
    "description",
    "digest",
    "facts_of",
    "identity",
    "made_by",
    "originals",
    "record_of",
    "same",
    "scrubbed",
    "check_sidecar",
    "sidecar",
    "sidecar_path",
]

DESCRIPTION = (
    "Brought onto a finer grid by mrisr. Detail above the acquired resolution is synthesised by a network, not "
    "measured. Research software, not a medical device."
)
KEY = "Mrisr"  # of what BIDS has no words for
LARGEST = 4 << 20  # bytes of a sidecar


@dataclass(frozen=True)
class Identity:
    """What decides a result: the same three give the same result.

    source   SHA-256 of the source's files, and what sidecars say of its acquisition
    weights  SHA-256
    options  of `mrisr.upscale` that say what to compute, and the stored type, as JSON has them
    """

    source: dict[str, Any]
    weights: str
    options: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """As the sidecar has it."""
        return {"Input": self.source, "WeightsSHA256": self.weights, "Options": self.options}


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 of one file; of several, of their sorted digests (the order and the names do not count)."""
    digests = []
    for path in paths:
        own = hashlib.sha256()
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path}: is a link to a file that is not there; fetch the file, or remove the link")
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise InputError(f"{path}: is not a regular file; copy it to a file first")
        try:
            with open(path, "rb") as stream:
                for block in iter(lambda: stream.read(1 << 20), b""):
                    own.update(block)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        digests.append(own.hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def identity(scan: Scan, weights: str, options: dict[str, Any], facts: dict[str, Any]) -> Identity:
    """What `scan` and `options` will make; reads the source to its end."""
    source = {"Name": scan.name, "SHA256": digest(scan.files)}
    if facts:
        source["Facts"] = facts
    if scan.others:
        partners = ({"Name": o.name, "SHA256": digest(o.files), "Facts": facts_of(o)} for o in scan.others)
        source["JoinedWith"] = [{key: value for key, value in one.items() if value} for one in partners]
    return Identity(_as_json(source), weights, _as_json({k: _named_file(v) for k, v in options.items()}))


def facts_of(scan: Scan) -> dict[str, Any]:
    """What sidecars say of an image's acquisition; DICOM says it itself."""
    if scan.from_dicom:
        return {}
    return nifti.sidecar_facts(scan.source, scan.sidecars)


def originals(scan: Scan) -> tuple[Path, ...]:
    """Every file that is there to be read: voxels, and sidecars but those that mrisr has written. No result may take
    the place of one."""
    files: list[Path] = []
    for one in (scan, *scan.others):
        files += one.files
        if not one.from_dicom:
            beside = (nifti.sidecar_of(one.source),) if one.sidecars is None else one.sidecars
            files += [path for path in beside if path.is_file() and _own(path) is None]
    return tuple(files)


def sidecar(
    identity: Identity,
    info: Any,
    *,
    dtype: str,
    size: int,
    extra: dict[str, Any] | None = None,
    run: str | None = None,
) -> dict[str, Any]:
    """The sidecar of one result.

    Args:
        info: `mrisr.infer.info.Info`.
        size: bytes of the image, or of the files of a series.
        extra: BIDS fields that stand before the others.
        run: id of the run that makes it.
    """
    voxel = " x ".join(f"{v:.4g}" for v in info.target.voxel_size)
    top = {
        "Description": DESCRIPTION,
        "Sources": [identity.source["Name"], *(other["Name"] for other in identity.source.get("JoinedWith", ()))],
        "SpatialReference": "orig",
        "Resolution": f"{voxel} mm; measured up to the frequencies in {KEY}.Bands, synthesised above them",
        "GeneratedBy": [{"Name": "mrisr", "Version": __version__}],
    }
    own = {
        "Version": __version__,
        "Date": datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        **({} if run is None else {"Run": run}),
        **identity.plain(),
        "Model": _file_name(info.model),
        "Network": info.network,
        "Output": {"Bytes": size, "DataType": dtype, "Shape": list(info.target.shape), "Frames": info.frames},
        "Bands": [
            {
                "Axis": axis,
                "Profile": r.profile,
                "AcquiredMM": round(r.acquired_mm, 6),
                "MeasuredToCyclesPerMM": round(r.measured_to, 6),
                "SynthesisedToCyclesPerMM": round(r.synthesised_to, 6),
            }
            for axis, r in enumerate(info.resolution)
        ],
        "BandsFrom": info.resolution_from,
        "Mode": info.mode,
        "Denoise": info.denoise,
        "Engine": {"Name": info.engine.name, "Device": info.engine.device, "Precision": info.engine.precision},
        "Tiles": info.tiles.kind,
        "Seam": info.tiles.seam,
        "SeamError": info.tiles.seam_error,
        "BackProjection": info.back_projection,
        "Consistency": [
            {"Applied": c.applied, "Why": c.why, "Chi2Before": c.chi2_before, "Chi2": c.chi2_after}
            for c in info.consistency
        ],
        **_distortions(info),
        **_stacks(info),
        **_adapted(info),
        "Seconds": {stage: round(seconds, 3) for stage, seconds in info.seconds.items()},
        "Warnings": list(info.warnings),
    }
    return {**top, **(extra or {}), KEY: own}


def _distortions(info: Any) -> dict[str, Any]:
    """What was taken out on the way, and what the spread of samples is worth; only what there was."""
    fields: dict[str, Any] = {}
    if info.gradnl.state != "absent":
        fields["GradientNonlinearity"] = (
            f"{info.gradnl.source}, up to {info.gradnl.largest_mm:.3g} mm ({info.gradnl.why})"
        )
    if info.bias.state != "absent":
        low, high = info.bias.span
        fields["BiasField"] = f"{info.bias.source}, {low:.3g} to {high:.3g}, {info.bias.output} in the output"
    if info.std_scale:
        fields["SpreadFactors"] = {str(level): factor for level, factor in info.std_scale.items()}
    return fields


def _stacks(info: Any) -> dict[str, Any]:
    """What became of each of several scans that were joined."""
    if not info.stacks:
        return {}
    return {
        "Stacks": [
            {
                "Name": _file_name(s.name),
                "TransformMM": [[round(v, 6) for v in row] for row in s.transform],
                "Registered": s.registered,
                "Correlation": round(s.correlation, 4),
                "Overlap": round(s.overlap, 4),
                "Gain": float(f"{s.gain:.6g}"),
                "Weight": round(s.weight, 4),
                "NoiseSigma": round(s.noise_sigma, 6),
                "Chi2Before": round(s.chi2_before, 4),
                "Chi2": round(s.chi2_after, 4),
            }
            for s in info.stacks
        ]
    }


def _adapted(info: Any) -> dict[str, Any]:
    """What the network has learnt from the scan."""
    adapt = info.adapt
    if adapt is None:
        return {}
    return {
        "Adapted": {
            "Used": adapt.used,
            "WeightsSHA256": adapt.weights,
            "Seconds": round(adapt.seconds, 1),
            "SecondsAtMost": adapt.limit,
            "Steps": adapt.steps,
            "StepsPlanned": adapt.planned,
            "InTime": adapt.in_time,
            "Loss": None if adapt.loss is None else [round(v, 5) for v in adapt.loss],
            "HeldBackGainDB": None if not math.isfinite(adapt.gain_db) else round(adapt.gain_db, 4),
            "Seed": adapt.seed,
            "SlicesMM": round(adapt.slices_mm, 4),
            "Precision": adapt.precision,
        }
    }


def as_text(value: Any) -> str:
    """JSON as mrisr writes it into files: strict, indented, with a last line end."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def description(model: str) -> str:
    """For NIfTI's `descrip`, which has 79 bytes."""
    return f"mrisr {__version__} {_file_name(model)[:40]}: synthesised detail"


def sidecar_path(image: Path) -> Path:
    """The sidecar of an image: the same name, ending in .json; of a folder, beside it: a PACS takes what is in it."""
    ending = nifti.ending_of(image)
    if ending is None:
        return image.with_name(f"{image.name}.json")
    return image.with_name(image.name[: -len(ending)] + ".json")


def scrubbed(text: str, scan: Scan) -> str:
    """`text` with the names of `scan` in place of paths of this machine."""
    for other in scan.others:
        text = scrubbed(text, other)
    if isinstance(scan.source, Path):
        text = text.replace(str(scan.source), scan.name)
        folders = [scan.source.parent]
    else:
        folders = sorted({path.parent for path in scan.files}, key=lambda p: -len(str(p)))
    folders.append(scan.target.parent)
    for folder in folders:
        if folder != Path("."):
            text = text.replace(f"{folder}/", "").replace(str(folder), folder.name)
    return text


def check_sidecar(path: Path, *, force: bool = False) -> None:
    """OutputError where the sidecar `path` cannot be written: its name may be longer than its image's."""
    try:
        check_target(path, force=force)
    except OutputError as error:
        raise OutputError(f"{error} (the sidecar of the output; --no-sidecar leaves it out)") from error


def record_of(image: Path) -> dict[str, Any] | None:
    """What the sidecar of `image` says under KEY; None where there is none of mrisr's."""
    path = sidecar_path(image)
    return _own(path) if os.path.isfile(path) else None  # nor is there one by a name that no file can have


def _own(path: Path) -> dict[str, Any] | None:
    """What the sidecar `path` says under KEY."""
    try:
        record = schema.read(path, largest=LARGEST)
    except InputError:  # somebody else's, or damaged: nothing of ours is stated there
        return None
    own = record.get(KEY) if isinstance(record, dict) else None
    return own if isinstance(own, dict) else None


def same(image: Path, identity: Identity) -> bool:
    """Whether `image` is there, whole, and what `identity` would give again."""
    own = record_of(image)
    if own is None or not image.exists():
        return False
    if any(own.get(key) != value for key, value in identity.plain().items()):
        return False
    output = own.get("Output")
    return isinstance(output, dict) and output.get("Bytes") == size_of(image)


def made_by(run: str | None, image: Path, identity: Identity) -> bool:
    """Whether the run of this id has finished `image` already."""
    return run is not None and (record_of(image) or {}).get("Run") == run and same(image, identity)


def size_of(result: Path) -> int:
    """Bytes of an image, or of all files of a folder."""
    if result.is_dir():
        return sum(file.stat().st_size for file in result.iterdir() if file.is_file())
    return result.stat().st_size


def _named_file(value: Any) -> Any:
    """An option that is a file, as its name and hash; anything else as it is."""
    if isinstance(value, (str, os.PathLike)) and os.path.isfile(value):
        return {"Name": Path(value).name, "SHA256": digest([Path(value)])}
    return value


def _file_name(text: str) -> str:
    return Path(str(text)).name


def _as_json(value: Any) -> Any:
    """`value` as a reader of the sidecar gets it: tuples are lists, float32 are floats."""
    return json.loads(json.dumps(value, default=str))
