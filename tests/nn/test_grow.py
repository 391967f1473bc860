"""A grown network gives what the smaller one gives, and can learn what that could not."""

import pytest
import torch

from mrisr.errors import ModelError
from mrisr.nn.grow import grow
from mrisr.nn.unet import UNet, UNetConfig
from mrisr.nn.vector import GUIDANCE_CHANNELS, VECTOR_DIM

SMALL = UNetConfig(widths=(8, 16, 32), encoder=(1, 1), middle=1, decoder=(1, 1), embed=16)


def outputs(*nets):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(1, 1, 16, 16, 16, generator=generator) for _ in range(2))
    vector = torch.randn(1, VECTOR_DIM, generator=generator)
    guidance = torch.randn(1, GUIDANCE_CHANNELS, 2, 2, 2, generator=generator)
    return [net(x, y, vector, guidance) for net in nets]


@pytest.mark.parametrize(
    "larger",
    [
        UNetConfig(widths=(8, 16, 32), encoder=(2, 1), middle=3, decoder=(1, 2), embed=16),
        UNetConfig(widths=(16, 32, 64), encoder=(1, 1), middle=1, decoder=(1, 1), embed=16),
        UNetConfig(widths=(24, 48, 96), encoder=(1, 2), middle=2, decoder=(1, 1), embed=16, attention=2, head_dim=32),
    ],
)
def test_growth_keeps_the_function_and_copies_learn_apart(larger):
    torch.manual_seed(1)
    small, large = UNet(SMALL), UNet(larger)
    for p in small.parameters():
        p.data += 0.05 * torch.randn_like(p)
    grow(small, large)
    before, after = outputs(small, large)
    assert (before - after).abs().max() < 1e-5 * before.abs().max() and float(before.std()) > 1e-3
    after.square().mean().backward()
    gradient = large.encode0.blocks[0].conv1.weight.grad
    times = larger.widths[0] // 8
    if times > 1:
        assert not torch.allclose(gradient[:8], gradient[8:16], rtol=1e-3, atol=0)
    new = large.middle.stage.blocks[-1].conv2.weight.grad
    assert float(new.abs().max()) > 0


def test_what_cannot_grow_says_why():
    for larger, reason in (
        (UNetConfig(widths=(16, 32, 64), encoder=(1, 1), middle=1, decoder=(1, 1), embed=16, norm="group"), "groups"),
        (UNetConfig(widths=(16, 16, 32), encoder=(1, 1), middle=1, decoder=(1, 1), embed=16), "multiple"),
        (UNetConfig(widths=(16, 32, 64), encoder=(1, 1), middle=1, decoder=(1, 1), embed=32), "embedding"),
        (UNetConfig(widths=(16, 32, 64), encoder=(0, 1), middle=1, decoder=(1, 1), embed=16), "fewer blocks"),
    ):
        with pytest.raises(ModelError, match=reason):
            grow(UNet(SMALL), UNet(larger))
