"""Trained weights: the shipped ones by name, others by path. Only safetensors are read, never pickles.

A file may hold half precision (`mrisr.weights.publish`); what is loaded is float32 all the same.

Beside shipped weights NAME may lie NAME-2d and NAME-3d: networks of the same size that learnt one kind of acquisition
alone, slices or cuts of k-space, and are better there (docs/quality.md). They belong to NAME, which has one hash for
all of them; `mrisr.infer.networks` says which one a scan is for.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta as Limits
from msgspec import Struct

from mrisr import bundle, schema
from mrisr.bundle.config import Count, Line, Positive, Steps, Word
from mrisr.errors import ModelError, because, excerpt, opening
from mrisr.nn.vector import FIRST_VERSION, GENERAL, SPECIAL

FOLDER = Path(__file__).parent
EXPECTED = {FOLDER / "base.safetensors": SPECIAL}  # whose networks every installation has
FORMAT = 1
STORED = ("torch.float32", "torch.bfloat16", "torch.float16")


class Calibration(Struct, frozen=True):
    """One entry of "uncertainty": factors that make intervals of a spread, see `mrisr.weights.publish`."""

    samples: Count
    steps: Steps
    scale: Annotated[dict[schema.text(r"0?\.[0-9]{1,9}", "a level such as 0.9"), Positive], Limits(max_length=64)]


class Trained(Struct, frozen=True):
    """Of the configuration of the run, what says what was learnt (of guidance only older weights)."""

    gradnl: Annotated[float, Limits(ge=0, le=1)] = 0.0
    bias: Annotated[float, Limits(ge=0, le=1)] = 0.0
    families: Annotated[list[Word], Limits(max_length=16)] = []
    mean_fraction: Annotated[float, Limits(ge=0, le=1)] = 0.0


class Meta(Struct):
    """The "mrisr" header of a weights file: what is read of it. What else it says is for people."""

    format: Literal[FORMAT]
    preset: Word
    sigma_data: Annotated[float, Limits(gt=0, lt=10)]
    name: Line = ""
    version: Annotated[int, Limits(ge=0, le=10**6)] = 0
    trained_range: dict[Literal["isotropic", "slice"], tuple[Positive, Positive]] = {}
    guidance: Annotated[list[Word], Limits(max_length=16)] = []
    denoise: bool = False
    few_steps: Annotated[list[Steps], Limits(max_length=16)] = []
    uncertainty: Annotated[list[Calibration], Limits(max_length=64)] = []
    config: Trained = Trained()


@dataclass(frozen=True)
class LoadedModel:
    """Weights ready to run.

    Attributes:
        denoiser: `mrisr.diffusion.precond.Denoiser`, eval mode, float32, on the CPU.
        name: the name or path it was asked for by.
        meta: what the file says of itself (preset, sigma_data, trained_range, data, configuration; where calibrated,
            "uncertainty", see `mrisr.weights.publish`).
        sha256: of the weights file; of the digests of all, where there are several networks.
        card: path of the model card, or None.
        plan: of a bundle with a TensorRT plan, a `mrisr.bundle.Plan`.
        network: which network of the name this is: GENERAL, or one of SPECIAL.
        networks: those of SPECIAL that there are beside it; see `network_of`.
        origin: (denoiser, meta) as they were loaded: who has put others in their place means these.
    """

    denoiser: object
    name: str
    meta: dict
    sha256: str
    card: Path | None
    plan: bundle.Plan | None = None
    network: str = GENERAL
    networks: tuple[str, ...] = ()
    origin: tuple | None = None


def available() -> list[str]:
    """Names of the weights in the package; special networks go by the name that they belong to."""
    names = {p.stem for p in FOLDER.glob("*.safetensors")}
    return sorted(names - {f"{name}-{network}" for name in names for network in SPECIAL})


def locate(name: str | Path) -> Path:
    """The weights file of a shipped name or a path; ModelError says what there is."""
    shipped = FOLDER / f"{name}.safetensors"
    if shipped.parent == FOLDER and shipped.is_file():
        return shipped
    path = Path(name)
    if path.is_dir():
        path = path / bundle.WEIGHTS_NAME
        if bundle.is_bundle(name) and not path.is_file():
            raise ModelError(f"{path}: is missing; export or copy the bundle again")
    if path.is_file():
        if path.name != bundle.WEIGHTS_NAME and bundle.is_bundle(path.parent):
            raise ModelError(f"{path}: is one file of a bundle; give the bundle's folder, {path.parent}")
        return path
    raise ModelError(
        f"model: {str(name)!r} is neither shipped ({', '.join(available()) or 'none'}) nor a weights file; "
        "give one of these names, a .safetensors file, the folder of a run, or a bundle"
    )


def load(name: str | Path | LoadedModel = "base") -> LoadedModel:
    """Load weights by name ("base"), by path of a .safetensors file, of a training folder or of a bundle
    (`mrisr export`); a LoadedModel passes.

    Raises:
        ModelError: not found, damaged, of another format, or not made by mrisr.
    """
    if isinstance(name, LoadedModel):
        return name
    with opening(name, ModelError):
        path = locate(name)
        of_bundle = bundle.is_bundle(name) and path.parent == Path(name)
    if of_bundle:
        folder = bundle.read(name)
        model = _of_file(path, name)
        _check_bundle(model, folder)
        return replace(model, card=folder.file(bundle.CARD_NAME), plan=folder.plan())
    others, own = _special(name, path), _of_file(path, name)
    origin = (own.denoiser, own.meta)
    return replace(own, sha256=_hash(path, *others.values()), networks=tuple(others), origin=origin)


def network_of(model: LoadedModel, network: str) -> LoadedModel:
    """The model with this network of its name; itself where there is no such, or somebody has replaced its own.

    Raises:
        ModelError: its file has gone, is damaged, or holds another preset.
    """
    unchanged = model.origin is not None and model.origin[0] is model.denoiser and model.origin[1] is model.meta
    if network not in model.networks or not unchanged:
        return model
    path = _file_of(model.name, network)
    if not path.is_file():
        raise ModelError(_missing(path))
    with opening(model.name, ModelError):
        own = _of_file(path, model.name)
    if own.meta["preset"] != model.meta["preset"]:
        raise ModelError(
            f"{path}: holds preset {own.meta['preset']!r}, and {model.name} is "
            f"{model.meta['preset']!r}; install mrisr again"
        )
    return replace(own, sha256=model.sha256, card=model.card, network=network)


def _special(name: str | Path, path: Path) -> dict[str, Path]:
    """The files of the other networks of a shipped name, of which `path` is the general one; none of a path."""
    if path != FOLDER / f"{name}.safetensors":
        return {}
    files = {network: _file_of(name, network) for network in SPECIAL}
    for network in EXPECTED.get(path, ()):
        if not files[network].is_file():
            raise ModelError(_missing(files[network]))
    return {network: file for network, file in files.items() if file.is_file()}


def _file_of(name: str | Path, network: str) -> Path:
    return FOLDER / f"{name}-{network}.safetensors"


def _missing(path: Path) -> str:
    return f"{path}: is missing; install mrisr again"


def _hash(*paths: Path) -> str:
    """SHA-256 of one file; of several, of their digests in this order."""
    digests = [_hash_of(*_key(path)) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@lru_cache(16)
def _hash_of(path: str, *state: int) -> str:
    """state: of the file when it was read, so that another in its place is read again."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@dataclass(frozen=True)
class Weights:
    """Weights that are none of a bundle: where the general network lies, `LoadedModel.sha256`, the model card or None,
    and the files of the special networks that there are."""

    path: Path
    sha256: str
    card: Path | None
    networks: dict[str, Path]


def identify(name: str | Path) -> Weights | None:
    """What a name or a path stands for, without loading it; None: a bundle. Raises ModelError."""
    with opening(name, ModelError):
        path = locate(name)
        if bundle.is_bundle(name) and path.parent == Path(name):
            return None
        others = _special(name, path)
        return Weights(path, _hash(path, *others.values()), _card(path), others)


def is_loaded(name: str | Path, network: str = GENERAL) -> bool:
    """Whether this network of a name is in memory already. Raises ModelError."""
    with opening(name, ModelError):
        path = locate(name)
        return _key(_special(name, path).get(network, path)) in _CACHE


def fresh(name: str | Path, network: str = GENERAL) -> LoadedModel:
    """A network as `load` and `network_of` give it, none of a bundle, but nobody else has it. Raises ModelError where
    its file has gone, too."""
    with opening(name, ModelError):
        path = locate(name)
        others = _special(name, path)
        own = _load(others.get(network, path), str(name))
        general = replace(own, sha256=_hash(path, *others.values()), card=_card(path), networks=tuple(others))
        return general if network not in others else replace(general, network=network, networks=())


def _of_file(path: Path, name: str | Path) -> LoadedModel:
    # One module per file, so that what an engine has compiled for it is found again by the next call.
    key = _key(path)
    if key not in _CACHE:
        while len(_CACHE) > len(SPECIAL):  # scans of all kinds may come by turns
            _CACHE.pop(next(iter(_CACHE)))
        _CACHE[key] = _load(path, str(name))
    return replace(_CACHE[key], name=str(name))


def _key(path: Path) -> tuple:
    stat = path.stat()
    return str(path.resolve()), stat.st_ino, stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size


def _card(path: Path) -> Path | None:
    """The model card beside a file; special networks are on that of their name."""
    names = [path.stem, *(path.stem.removesuffix(f"-{network}") for network in SPECIAL)]
    return next((card for name in names if (card := path.with_name(f"{name}.md")).is_file()), None)


_CACHE: dict[tuple, LoadedModel] = {}


def _check_bundle(model: LoadedModel, folder: bundle.Bundle) -> None:
    """What a reader in C++ takes from the configuration has to be what Python takes from the weights."""
    config, net = folder.config, model.denoiser.net
    facts = {
        "preset": (config["preset"], model.meta["preset"]),
        "parameters": (config["parameters"], sum(p.numel() for p in net.parameters())),
        "diffusion.sigma_data": (config["diffusion"]["sigma_data"], model.denoiser.sigma_data),
        "network.norm": (config["network"]["norm"], net.config.norm),
        "network.widths": (config["network"]["widths"], list(net.config.widths)),
    }
    for field, (statement, own) in facts.items():
        if statement != own:
            raise ModelError(
                f"{folder.folder}: config.json has {field} {statement!r}, and the weights {own!r}; export the "
                "bundle again"
            )


def _load(path: Path, name: str) -> LoadedModel:
    meta, tensors = read(path)
    import torch

    from mrisr.diffusion.precond import Denoiser
    from mrisr.nn.condition import widened
    from mrisr.nn.presets import build

    net = build(meta["preset"])
    first = tensors.get("embed.0.weight")
    if first is not None and first.shape[1:] == (FIRST_VERSION,):
        tensors["embed.0.weight"] = widened(first)
    try:
        net.load_state_dict(tensors)  # copied into float32, whatever is stored
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ModelError(f"{path}: the tensors do not fit preset {meta['preset']!r}: {first}") from error
    for key, tensor in net.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{path}: {key} holds NaN or Inf; the file is damaged")
    net = net.to(memory_format=torch.channels_last_3d).eval().requires_grad_(False)
    return LoadedModel(Denoiser(net, meta["sigma_data"]).eval(), name, meta, _hash(path), _card(path))


def read(path: Path) -> tuple[dict, dict]:
    """(meta, name -> tensor as it is stored) of a weights file, checked. Raises ModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            header = (f.metadata() or {}).get("mrisr")
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ModelError(f"{path}: not a readable safetensors file ({because(error)}); fetch it again") from error
    odd = [f"{key} is {t.dtype}" for key, t in tensors.items() if str(t.dtype) not in STORED]
    if odd:
        raise ModelError(f"{path}: expected tensors of {', '.join(STORED)}; {odd[0]}")
    if header is None:
        raise ModelError(f"{path}: a safetensors file, but without the 'mrisr' header that `mrisr train` writes")
    where = f"{path}: the 'mrisr' header"
    meta = schema.parse(header.encode("utf-8", "surrogatepass"), where, error=ModelError)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        version = excerpt(meta.get("format")) if isinstance(meta, dict) else type(meta).__name__
        raise ModelError(f"{path}: weights of format {version}; this mrisr reads format {FORMAT}")
    schema.check(meta, Meta, where, error=ModelError)
    return meta, tensors


def as_bytes(tensors: dict, meta: dict) -> bytes:
    """A weights file: tensors as they are, `meta` as JSON in the header. The same give the same bytes."""
    from safetensors.torch import save

    plain = {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}
    return save(plain, metadata={"mrisr": json.dumps(meta)})
