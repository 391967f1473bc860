"""The methods a table compares: each takes a trial's scan and answers on the trial's fine grid.

A method may look at `trial.scan`, `trial.coarse` and `trial.fine`; `trial.psf` only where its name says that
the acquisition is stated. The names that `mrisr evaluate --methods` knows:

    trilinear, cubic, quintic, zerofill   the baselines
    linear                                linear regression, trained on the volumes of --train-on
    mrisr                                 mrisr.upscale, mode mean, psf="auto": what a user gets
    mrisr-stated                          the same, told the point spread (so consistency may run)
    mrisr-sample                          one sample instead of the mean, psf="auto"
    net:PATH                              another network's weights through the same pipeline, mode mean,
                                          such as the deterministic network trained with L1
    [LABEL=]MODEL[@HOW...]                a network under a label of its own. MODEL: "mrisr" (what --model says),
                                          a shipped name or a path; HOW: sampleN (one sample of N steps),
                                          ensembleN (the mean of N mirrorings), stated (told the point spread),
                                          denoise (noise is taken out of what was measured).
                                          teacher=runs/teacher@sample16, mrisr@ensemble8, l1=runs/l1
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import mrisr
from mrisr.errors import MrisrError, UsageError
from mrisr.evaluate.baselines import BASELINES, LinearRegression
from mrisr.evaluate.cases import CASES, Subject, Trial, make_trial
from mrisr.infer.facts import MIRRORINGS
from mrisr.volume import Volume
from mrisr.weights import registry

Method = Callable[[Trial], np.ndarray]

YARDSTICK = "cubic"
OWN = ("mrisr", "mrisr-stated", "mrisr-sample")
_SPEC = re.compile(r"(?:(?P<label>[\w.-]+)=)?(?P<model>[^@=]+)(?P<how>(?:@\w+)*)")
_HOW = re.compile(r"((?:stated|denoise)(?!\d)|sample(?=\d)|ensemble(?=\d))(\d*)")


@dataclass(frozen=True)
class Interpolation:
    """A baseline that looks at nothing but the scan and the two grids."""

    name: str

    def __call__(self, trial: Trial) -> np.ndarray:
        return BASELINES[self.name](trial.scan, trial.coarse, trial.fine)


@dataclass
class Network:
    """mrisr.upscale as a method. `model`: a name, a path or a loaded model (loaded once, at the first trial);
    `stated`: tell it the true point spread; `mode`: "mean" or "sample"; the rest as for `mrisr.upscale`."""

    model: Any = "base"
    device: str = "auto"
    mode: str = "mean"
    stated: bool = False
    steps: int = 1
    ensemble: int = 1
    denoise: float = 0.0
    engine: str = "auto"
    precision: str = "auto"
    memory: str | None = None
    threads: int | None = None
    seed: int = 0

    def __call__(self, trial: Trial) -> np.ndarray:
        if isinstance(self.model, str):
            self.model = mrisr.load_model(self.model)
        scan = Volume(trial.scan, np.array(trial.coarse.affine), name=f"{trial.subject} ({trial.case.name})")
        result = mrisr.upscale(
            scan,
            voxel_size=trial.fine.voxel_size,
            model=self.model,
            device=self.device,
            engine=self.engine,
            precision=self.precision,
            memory=self.memory,
            threads=self.threads,
            mode=self.mode,
            steps=self.steps,
            ensemble=self.ensemble,
            denoise=self.denoise,
            seed=self.seed,
            psf=trial.psf if self.stated else "auto",
        )
        # Half a voxel off costs more than any network gains: never let it pass as a worse method.
        if result.data.shape != trial.fine.shape or not np.allclose(
            result.affine, trial.fine.affine, atol=0.01 * min(trial.fine.voxel_size)
        ):
            raise MrisrError(
                f"upscale answered on another grid than asked for: expected {trial.fine.shape} voxels, "
                f"found {result.data.shape}, affine {np.round(result.affine, 3).tolist()}"
            )
        return np.asarray(result.data, dtype=np.float32)


class Regression:
    """Linear regression on 5^3 neighbourhoods, one per case, trained on first use on other people's
    volumes."""

    def __init__(self, training: Sequence[Subject], seed: int = 0):
        if not training:
            raise UsageError("method linear: needs training volumes; give --train-on FOLDER")
        self._training, self._seed = list(training), seed
        self._trained: dict[str, LinearRegression] = {}

    def __call__(self, trial: Trial) -> np.ndarray:
        if any(subject.name == trial.subject for subject in self._training):
            raise UsageError(f"method linear: {trial.subject} is among its training volumes; split by person")
        name = trial.case.name
        if name not in self._trained:
            # Another seed than the protocol's: the noise it learns from is not the noise it is judged on.
            trials = [make_trial(subject, trial.case, self._seed + 1) for subject in self._training]
            self._trained[name] = LinearRegression(seed=self._seed).fit(
                [(t.scan, t.coarse, t.reference, t.fine, t.mask) for t in trials]
            )
        return self._trained[name](trial.scan, trial.coarse, trial.fine)


def build_methods(
    names: Sequence[str], *, model: str = "base", training: Sequence[Subject] = (), seed: int = 0, **network
) -> dict[str, Method]:
    """Name -> method, in the order asked for; cubic first where it is missing, because every gain is over it.

    `network`: device, engine, precision, memory and threads for the networks. UsageError for a name that is not known,
    ModelError for weights that are not there.
    """
    names = list(dict.fromkeys(names))
    if YARDSTICK not in names:
        names.insert(0, YARDSTICK)
    methods = {label_of(name): _build(name, model, training, seed, network) for name in names}
    if len(methods) < len(names):
        raise UsageError(f"methods: two of {', '.join(names)} have the same label; give each one of its own")
    return methods


def label_of(name: str) -> str:
    """What the tables call a method: LABEL, or the whole of what was asked for."""
    label, equals, _ = name.partition("=")
    return label if equals else name


def _build(name: str, model: str, training, seed: int, network: dict) -> Method:
    if name in BASELINES:
        return Interpolation(name)
    if name == "linear":
        return Regression(training, seed)
    if name in OWN:
        registry.locate(model)  # a wrong name should fail now, not after an hour of baselines
        return Network(
            model=model,
            mode="sample" if name == "mrisr-sample" else "mean",
            stated=name == "mrisr-stated",
            seed=seed,
            **network,
        )
    if name.startswith("net:"):
        return Network(model=str(registry.locate(name[4:])), seed=seed, **network)
    return _network(name, model, seed, network)


def _network(name: str, model: str, seed: int, network: dict) -> Network:
    """The method of a text [LABEL=]MODEL[@HOW...]."""
    spec = _SPEC.fullmatch(name)
    if spec is None or not (spec["label"] or spec["how"]):
        words = ", ".join(
            [*BASELINES, "linear", *OWN, "net:PATH", "[LABEL=]MODEL[@sampleN][@ensembleN][@stated][@denoise]"]
        )
        raise UsageError(f"method {name!r} is not known; choose from {words}")
    how = {}
    for word in filter(None, spec["how"].split("@")):
        match = _HOW.fullmatch(word)
        if match is None:
            raise UsageError(f"method {name!r}: after @ expected sampleN, ensembleN, stated or denoise, found {word!r}")
        how[match[1]] = int(match[2] or 1)
    steps, ensemble = how.get("sample", 0), how.get("ensemble", 1)
    if ensemble not in MIRRORINGS or (steps and ensemble > 1) or how.get("sample") == 0:
        counts = ", ".join(map(str, MIRRORINGS))
        raise UsageError(f"method {name!r}: expected N >= 1 steps of a sample, or an ensemble of {counts} for the mean")
    weights = model if spec["model"] == "mrisr" else spec["model"]
    registry.locate(weights)
    return Network(
        model=weights,
        mode="sample" if steps else "mean",
        stated="stated" in how,
        denoise=float("denoise" in how),
        steps=steps or 1,
        ensemble=ensemble,
        seed=seed,
        **network,
    )


def describe_models(methods: dict[str, Method]) -> dict[str, str]:
    """Label -> weights, of every network among the methods."""
    networks = {label: method.model for label, method in methods.items() if isinstance(method, Network)}
    return {label: describe_model(getattr(model, "name", model)) for label, model in networks.items()}


def describe_model(name: str) -> str:
    """Name of the weights and the start of their SHA-256: what a report needs to tell two files of one name
    apart."""
    weights = registry.identify(name)
    digest = registry.load(name).sha256 if weights is None else weights.sha256
    return f"{registry.locate(name).name} (sha256 {digest[:12]})"


def pick_cases(names: Sequence[str]):
    """The cases of these names, in order. UsageError for a name that is not known."""
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise UsageError(f"case {unknown[0]!r} is not known; choose from {', '.join(CASES)}")
    return [CASES[name] for name in dict.fromkeys(names)]
