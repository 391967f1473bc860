"""What several test modules need: models that are small but not zero, and a head-like phantom."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Converted graphs go where the tests can throw them away, and what is compared is float32 on every processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRISR_PRECISION", "float32")
        patch.setenv("MRISR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def random_model():
    """make(kind) -> a model with random weights everywhere, so that its residual is not zero.

    kind: "local" (the student's mechanisms, few channels) or a preset. The same object every time.
    """
    import torch

    from mrisr.diffusion.precond import Denoiser
    from mrisr.nn.presets import PRESETS
    from mrisr.nn.unet import UNet, UNetConfig
    from mrisr.weights.registry import LoadedModel

    configs = {
        "local": UNetConfig(widths=(16, 16, 32), encoder=(1, 1), middle=1, decoder=(1, 1), embed=32),
        **PRESETS,
    }
    made = {}

    def make(kind: str = "local"):
        if kind not in made:
            torch.manual_seed(0)
            net = UNet(configs[kind]).eval()
            for parameter in net.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.05)
            made[kind] = LoadedModel(Denoiser(net, 0.05), f"random {kind}", {}, "", None)
        return made[kind]

    return make


@pytest.fixture(scope="session")
def head():
    """make(shape, air=0.3) -> float32 [X, Y, Z]: folded tissue in a bright rim, noisy air around it.

    air: part of each axis that is air, on both sides together.
    """

    def make(shape=(48, 56, 44), air: float = 0.3, noise: float = 5.0, seed: int = 0):
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        radius = np.sqrt((grid**2).sum(axis=0)) / (1 - air)
        folds = 500 + 250 * np.sin(19 * grid[0]) * np.sin(17 * grid[1]) * np.sin(15 * grid[2])
        clean = np.where(radius < 0.9, folds, np.where(radius < 1.0, 900.0, 0.0))
        rng = np.random.default_rng(seed)
        noisy = np.hypot(clean + noise * rng.standard_normal(shape), noise * rng.standard_normal(shape))
        return noisy.astype(np.float32)

    return make
