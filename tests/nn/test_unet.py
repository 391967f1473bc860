"""The U-Net: its budgets, its start, its blindness to air, its two kinds of norm."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mrisr.errors import ModelError, UsageError
from mrisr.nn.blocks import depth_to_space, rms_norm, space_to_depth
from mrisr.nn.presets import PRESETS, build
from mrisr.nn.unet import UNet, UNetConfig
from mrisr.nn.vector import GUIDANCE_CHANNELS, VECTOR_DIM
from mrisr.ops.attention3d import FLOP

# preset: (fewest, most) parameters in millions, (fewest, most) kFLOP per output voxel
BUDGETS = {
    "student": ((0.5, 8.0), (20, 100)),
    "teacher": ((8.0, 25.0), (280, 475)),
    "teacher-large": ((20.0, 30.0), (280, 475)),
    "teacher-small": ((0.5, 3.0), (20, 200)),
    "tiny": ((0.01, 0.3), (1, 20)),
}


def inputs(shape, n=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, 1, *shape, generator=generator) for _ in range(2))
    vector = torch.randn(n, VECTOR_DIM, generator=generator)
    guidance = torch.randn(n, GUIDANCE_CHANNELS, *(s // 8 for s in shape), generator=generator)
    return x, y, vector, guidance


def randomised(net, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1 and float(p.abs().max()) == 0:
                p.normal_(0, 0.05)
    return net.eval()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_parameters_and_flop_stay_within_the_budget(preset):
    """2 FLOP per multiply-add, all channels and guidance, counted by torch on a 64^3 volume."""
    (few, many), (low, high) = BUDGETS[preset]
    with torch.device("meta"):
        net = build(preset)
        arguments = [torch.empty(a.shape) for a in inputs((64, 64, 64))]
    with FlopCounterMode(display=False, custom_mapping=FLOP) as counter, torch.no_grad():
        net(*arguments)
    assert few <= sum(p.numel() for p in net.parameters()) / 1e6 <= many
    assert low <= counter.get_total_flops() / 64**3 / 1e3 <= high


@pytest.mark.parametrize("preset", ["student", "tiny"])
def test_an_untrained_network_adds_nothing(preset):
    with torch.no_grad():
        assert torch.equal(build(preset)(*inputs((16, 16, 24))), torch.zeros(1, 1, 16, 16, 24))


def test_widths_are_multiples_of_eight_and_the_body_of_32():
    for name in ("student", "teacher", "teacher-small"):
        assert all(w % 32 == 0 for w in PRESETS[name].widths)


def test_space_to_depth_there_and_back():
    x = torch.randn(2, 3, 4, 6, 8)
    packed = space_to_depth(x)
    assert packed.shape == (2, 24, 2, 3, 4) and packed.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(depth_to_space(packed), x)
    assert torch.equal(packed[:, 8 + 5], x[:, 1, 1::2, 0::2, 1::2])  # channel c * 8 + 4 d + 2 h + w


def test_every_input_matters():
    for preset in ("student", "tiny"):
        net = randomised(build(preset))
        arguments = list(inputs((16, 16, 16)))
        with torch.no_grad():
            reference = net(*arguments)
            for i in range(4):
                changed = list(arguments)
                changed[i] = changed[i] + 0.5
                assert not torch.allclose(net(*changed), reference, atol=1e-6), (preset, i)


def test_rms_norm_is_local_and_of_unit_size():
    x = torch.randn(1, 32, 4, 4, 4) * 7
    y = rms_norm(x)
    assert torch.allclose(y.square().mean(1), torch.ones(1, 4, 4, 4), atol=1e-3)
    moved = x.clone()
    moved[..., 0] += 100
    assert torch.equal(rms_norm(moved)[..., 1:], y[..., 1:])


def head(shape, seed=1):
    """A head-like ball with texture, air (exactly 0) around it, and the bricks that hold it, grown by 16 voxels."""
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.linspace(-2.7, 2.7, s) for s in shape]
    r2 = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2
    y = (0.5 + 0.3 * torch.rand(shape, generator=generator)) * (r2 < 1)
    bricks = torch.nn.functional.max_pool3d(y[None, None], 8) > 0
    active = torch.nn.functional.max_pool3d(bricks.float(), 5, 1, 2)
    return y[None, None], active, (r2 < 1)[None, None]


def padded(t, low, high):
    return torch.nn.functional.pad(t, (low, high) * 3)


@pytest.mark.parametrize("attention,air", [(0, 80), (2, 128)])
def test_air_around_a_head_changes_nothing_inside_group_norm(attention, air):
    """Attention windows are 64 voxels, counted from the origin, so there the air comes in multiples of 64."""
    torch.manual_seed(0)
    config = UNetConfig(
        widths=(8, 8, 16), encoder=(1, 1), middle=2, decoder=(1, 1), norm="group", attention=attention,
        head_dim=16, embed=16,
    )  # fmt: skip
    net = randomised(UNet(config))
    y, active, inside = head((64, 64, 64))
    vector = torch.randn(1, VECTOR_DIM)

    def run(y, active):
        guidance = torch.zeros(1, GUIDANCE_CHANNELS, *(s // 8 for s in y.shape[2:]))
        with torch.no_grad():
            return net(torch.zeros_like(y), y, vector, guidance, active)

    small = run(y, active)
    large = run(padded(y, air, 0), padded(active, air // 8, 0))[..., air:, air:, air:]
    assert float((large - small)[inside].abs().max()) < 1e-5 * float(small[inside].abs().max() + 1)
    # The network finds the same bricks by itself.
    own = run(padded(y, air, 0), None)[..., air:, air:, air:]
    assert float((own - run(y, None))[inside].abs().max()) < 1e-5 * float(small[inside].abs().max() + 1)
    # What would happen without a mask: the statistics see air, and the head changes.
    everywhere = torch.ones_like(active), torch.ones_like(padded(active, air // 8, 0))
    plain = run(y, everywhere[0]), run(padded(y, air, 0), everywhere[1])[..., air:, air:, air:]
    assert float((plain[1] - plain[0])[inside].abs().max()) > 1e-3


def test_the_student_is_local():
    """What lies beyond its receptive field cannot move a voxel: 80 voxels of air further out change nothing at all."""
    net = randomised(build("student"))
    y = torch.zeros(1, 1, 16, 16, 184)
    y[..., :40] = torch.rand(1, 1, 16, 16, 40)
    longer = torch.nn.functional.pad(y, (0, 80))
    vector = torch.randn(1, VECTOR_DIM)

    def run(y):
        guidance = torch.zeros(1, GUIDANCE_CHANNELS, *(s // 8 for s in y.shape[2:]))
        with torch.no_grad():
            return net(torch.zeros_like(y), y, vector, guidance)

    short = run(y)
    assert float((run(longer)[..., :40] - short[..., :40]).abs().max()) < 1e-5 * float(short.abs().max())


def test_windows_that_stick_out_are_masked():
    net = randomised(build("tiny"))
    with torch.no_grad():
        out = net(*inputs((72, 16, 24)))
    assert bool(torch.isfinite(out).all())


def test_bad_sizes_and_names():
    with pytest.raises(UsageError, match="multiples of 8"):
        build("tiny")(*inputs((12, 16, 16)))
    with pytest.raises(ModelError, match="expected one of"):
        build("huge")
    with pytest.raises(UsageError, match="multiples of 8"):
        UNetConfig(widths=(12, 16, 16), encoder=(1, 1), middle=1, decoder=(1, 1))
    with pytest.raises(UsageError, match="head_dim"):
        UNetConfig(widths=(8, 16, 24), encoder=(1, 1), middle=1, decoder=(1, 1), attention=1)


def test_attention_over_the_whole_volume_and_its_normalisation_are_asked_for():
    """The parameters of a configuration that asks for neither are those of the shipped teachers."""
    plain = dict(widths=(8, 8, 16), encoder=(1, 1), middle=3, decoder=(1, 1), attention=3, head_dim=16, embed=16)
    windows, both = UNet(UNetConfig(**plain)), UNet(UNetConfig(**plain, global_attention=1, qk_norm=True))
    assert [layer.window for layer in both.middle.attention] == [8, 8, None]
    more = set(both.state_dict()) - set(windows.state_dict())
    assert more == {f"middle.attention.{i}.{name}_gain" for i in range(3) for name in "qk"}
    with pytest.raises(UsageError, match="global_attention \\(4\\) may not exceed attention \\(3\\)"):
        UNetConfig(**plain, global_attention=4)


def test_gradients_reach_every_parameter():
    net = randomised(build("tiny")).train()
    out = net(*inputs((16, 16, 16)))
    out.square().sum().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not np.isfinite(float(p.grad.norm()))]
    assert silent == []
