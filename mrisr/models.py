"""The model of a job: by its name from what the cache knows of it, and what a later job will find there."""

from __future__ import annotations

import logging
from typing import Any

from mrisr.errors import ModelError
from mrisr.infer.known import KnownModel, find, is_remembered, remember
from mrisr.nn.vector import GENERAL
from mrisr.weights import registry

log = logging.getLogger(__name__)


def model_for(model: Any, network: str) -> Any:
    """What runs a job, with this network of its name if there is one: a model as it was given; by name what the cache
    knows of it, else its weights."""
    if hasattr(model, "denoiser"):
        return registry.network_of(model, network)

    def load() -> registry.LoadedModel:
        return registry.network_of(registry.load(model), network)

    weights = None if registry.is_loaded(model, network) else registry.identify(model)
    if weights is None:
        return load()
    which = network if network in weights.networks else GENERAL
    return find(weights.sha256, str(model), weights.card, load, which) or load()


def remember_model(model: Any, network: Any, info: Any) -> None:
    """Leave what the next job needs that asks for the same model by its name."""
    by_name = not hasattr(model, "denoiser") and not isinstance(network, KnownModel)
    if by_name and info.engine.name == "openvino" and not is_remembered(info.weights, info.network):
        try:
            # What ran may have been changed by whoever has loaded it before.
            weights = registry.fresh(model, info.network)
        except ModelError as error:  # gone meanwhile; the result is there
            log.info("cannot read %s again: %s", model, error)
            return
        if weights.sha256 == info.weights:
            remember(weights)
