"""Models of which the cache has the graph, and all that planning asks of them: their weights need not be loaded.

The first job of a model by its name converts it (`mrisr.infer.engines.openvino`) and leaves, beside the graph, a file
with its facts, named by everything that they depend on: the weights, the code and the versions of the libraries. A
later job finds both and runs without PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from mrisr import environment, schema
from mrisr.errors import InputError, MrisrWarning, OutputError
from mrisr.infer.engines.cache import GRAPH, entry_of
from mrisr.infer.facts import ModelFacts
from mrisr.io.atomic import replacing
from mrisr.nn.vector import GENERAL, SPECIAL

PACKAGE = Path(__file__).parents[1]
# What facts and graphs are made by.
CODE = (
    "nn/*.py",
    "ops/rms_norm/*.py",
    "diffusion/precond.py",
    "weights/registry.py",
    "infer/facts.py",
    "infer/tiles.py",
    "infer/known.py",
)
LIBRARIES = ("torch", "openvino")
OF_CALL = ("name", "sha256", "card")  # facts that the caller has

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class KnownModel:
    """In place of a `mrisr.weights.registry.LoadedModel`.

    Attributes:
        facts: what planning and the account know of it.
        fingerprint: of its graph in the cache.
        load: the LoadedModel, for what needs the network itself.
    """

    facts: ModelFacts
    fingerprint: str
    load: Callable[[], Any]

    plan: ClassVar[None] = None  # of TensorRT: bundles have those

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def config(self) -> SimpleNamespace:
        """Of the network, what choosing an engine looks at."""
        return SimpleNamespace(norm=self.facts.norm, attention=self.facts.attention)

    def network(self) -> Any:
        """The PyTorch module."""
        return self.load().denoiser.net


def find(
    sha256: str, name: str, card: Path | None, load: Callable[[], Any], network: str = GENERAL
) -> KnownModel | None:
    """The model of these weights, where the cache has its graph and its facts.

    Args:
        sha256: of the weights file.
        name: that it was asked for by.
        card: its model card.
        load: gives the `LoadedModel`.
        network: which one of the name.

    Facts that are damaged cost a MrisrWarning, and the weights are loaded.
    """
    path = _place(sha256, network)
    if path is None:
        return None
    if (path, name) not in _FOUND:
        content = _read(path)
        if content is None:
            return None
        while len(_FOUND) > len(SPECIAL):
            _FOUND.pop(next(iter(_FOUND)))
        facts = _of_plain(content["facts"], name=name, sha256=sha256, card=None if card is None else str(card))
        _FOUND[path, name] = KnownModel(facts, content["fingerprint"], load)
    model = _FOUND[path, name]
    return model if (entry_of(model.fingerprint) / GRAPH).is_file() else None


# One object per model, so that what an engine has compiled for it is found again by the next call.
_FOUND: dict[tuple[Path, str], KnownModel] = {}


def remember(model: Any) -> None:
    """Leave the facts of a `LoadedModel` for `find`, where the cache has its graph. No cache is no error.

    Args:
        model: as it was read just now from the file of `model.sha256`; nobody has had it.
    """
    from mrisr.infer.engines.convert import fingerprint

    path, graph = _place(model.sha256, model.network), fingerprint(model.denoiser.net)
    if path is None or path.is_file() or not (entry_of(graph) / GRAPH).is_file():
        return
    content = {"fingerprint": graph, "facts": _plain(ModelFacts.of(model))}
    try:
        with replacing(path, force=True) as beside:
            beside.write_text(json.dumps({**content, "sha256": _digest(content)}), encoding="utf-8")
    except (OSError, OutputError) as error:
        log.info("cannot keep what is known of %s in %s: %s", model.name, path.parent, error)


def is_remembered(sha256: str, network: str) -> bool:
    """Whether there is nothing that `remember` could leave."""
    path = _place(sha256, network)
    return path is None or path.is_file() or not (path.parent.is_dir() and os.access(path.parent, os.W_OK))


def _place(sha256: str, network: str) -> Path | None:
    """The file of the facts; None without a cache."""
    folder = environment.cache_folder()
    if folder is None:
        return None
    digest = hashlib.sha256(repr((sha256, network, environment.versions(LIBRARIES))).encode())
    for pattern in CODE:
        for source in sorted(PACKAGE.glob(pattern)):
            digest.update(source.read_bytes())
    return folder / f"model-{digest.hexdigest()[:24]}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if not path.is_file():
            return None
        content = schema.read(path)
        digest = content.pop("sha256", None) if isinstance(content, dict) else None
        if digest == _digest(content):
            return content
        reason = "its checksum is another"
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
    except OSError as error:  # a folder that one may not enter
        log.info("cannot read the cache %s: %s", path.parent, error)
        return None
    warnings.warn(f"{path}: what is known of the model is damaged ({reason}); it is made again", MrisrWarning, 2)
    path.unlink(missing_ok=True)
    return None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(facts: ModelFacts) -> dict[str, Any]:
    """As JSON has it, without what a call says itself."""
    table = {name: value for name, value in asdict(facts).items() if name not in OF_CALL}
    scales = [[*key, {str(level): factor for level, factor in of.items()}] for key, of in facts.std_scale.items()]
    return json.loads(json.dumps({**table, "std_scale": scales}))


def _of_plain(table: dict[str, Any], **of_call: Any) -> ModelFacts:
    ranges = {kind: tuple(limits) for kind, limits in table["trained_range"].items()}
    scales = {
        (samples, steps): {float(level): factor for level, factor in scale.items()}
        for samples, steps, scale in table["std_scale"]
    }
    tuples = {name: tuple(table[name]) for name in ("few_steps", "learnt")}
    return ModelFacts(**{**table, **tuples, "trained_range": ranges, "std_scale": scales}, **of_call)
