"""The conditioning vector: absent is a flag, never a silent zero."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrisr.errors import UsageError
from mrisr.grid import Grid
from mrisr.nn.condition import Condition, guidance_channels, widened
from mrisr.nn.vector import (
    FIRST_VERSION,
    GUIDANCE_CHANNELS,
    SAMPLE,
    STEP_SHARE,
    VECTOR_DIM,
    VECTOR_LAYOUT,
    brick_grid,
    canonical_order,
)
from mrisr.physics.psf import AxisPSF

PSF = (AxisPSF("kspace", 1.0), AxisPSF("gaussian", 4.0), AxisPSF("unknown", 0.5))


def condition(noise=0.02):
    return Condition.of_acquisition(PSF, (1.0, 1.0, 1.0), noise, stored=(1.0, 4.0, 0.5))


def test_the_vector_tells_widths_profiles_noise_and_mode():
    sigma = torch.tensor([0.1])
    vector = condition().vector(sigma, 0.1)
    assert vector.shape == (1, VECTOR_DIM) and vector[0, 0] == 0
    assert vector[0, 2:5].tolist() == [0.0, 2.0, 0.0]  # 0.5 mm cannot be finer than the target
    assert not torch.equal(vector, condition().with_mode(SAMPLE).vector(sigma, 0.1))
    assert not torch.equal(vector, condition(0.04).vector(sigma, 0.1))


def test_an_unknown_noise_level_is_not_a_noise_level_of_zero():
    sigma = torch.tensor([0.1])
    assert not torch.equal(condition(None).vector(sigma, 0.1), condition(0.0).vector(sigma, 0.1))


def test_dropping_everything_leaves_only_what_is_always_known():
    batch = Condition.stack([condition()] * 4)
    dropped = batch.drop(0.999999, torch.Generator().manual_seed(0))
    assert not dropped.width_known.any() and not dropped.noise_known.any() and not dropped.profile.any()
    assert torch.equal(batch.drop(0.0, torch.Generator()).vector(torch.ones(4), 0.1), batch.vector(torch.ones(4), 0.1))


def test_guidance_is_dropped_with_its_flag():
    guidance = torch.ones(1, GUIDANCE_CHANNELS, 2, 2, 2)
    given = Condition(**{**condition().__dict__, "guidance": guidance})
    dropped = given.drop(0.5, torch.Generator().manual_seed(1)).guidance[0, :, 0, 0, 0]
    for channels in ((0, 5), (1, 2, 3, 6), (4, 7)):
        assert len({float(dropped[c]) for c in channels}) == 1
    assert torch.equal(condition().guidance_for((16, 16, 16)), torch.zeros(1, GUIDANCE_CHANNELS, 2, 2, 2))
    with pytest.raises(UsageError, match="guidance: expected"):
        given.guidance_for((64, 16, 16))


def test_the_coarsest_axis_comes_last():
    assert canonical_order(PSF, (1, 1, 1)) == (0, 2, 1)
    assert canonical_order([AxisPSF("kspace", 1.0)] * 3, (1, 1, 1)) == (0, 1, 2)
    assert canonical_order([AxisPSF("gaussian", w) for w in (5.0, 0.9, 0.9)], (0.7, 0.7, 0.7)) == (1, 2, 0)


def test_a_batch_mixes_items_with_and_without_guidance():
    guidance = torch.rand(1, GUIDANCE_CHANNELS, 2, 3, 4)
    given = replace(condition(), guidance=guidance)
    batch = Condition.stack([condition(), given, condition()]).guidance_for((16, 24, 32))
    assert torch.equal(batch[1:2], guidance) and not batch[::2].any()
    assert Condition.stack([condition()] * 2).guidance is None
    with pytest.raises(UsageError, match="one shape expected"):
        Condition.stack([given, replace(given, guidance=guidance[..., :2])])


def test_what_a_network_is_told_has_its_flags_and_units():
    displacement, log_det = torch.full((3, 2, 2, 2), 4.0), torch.full((2, 2, 2), 0.1)
    told = guidance_channels(displacement=displacement, log_det=log_det)
    assert told.shape == (1, GUIDANCE_CHANNELS, 2, 2, 2)
    assert told[0, :, 0, 0, 0].tolist() == pytest.approx([0, 0.5, 0.5, 0.5, 0.1, 0, 1, 1])
    assert guidance_channels(log_bias=log_det)[0, :, 1, 1, 1].tolist() == pytest.approx([0.1, 0, 0, 0, 0, 1, 0, 0])
    with pytest.raises(UsageError, match="at least one"):
        guidance_channels()


def test_bricks_lie_in_the_middle_of_their_voxels():
    grid = Grid((17, 16, 8), np.diag([0.5, -0.7, 1.0, 1.0]))
    bricks = brick_grid(grid)
    assert bricks.shape == (3, 2, 1)
    assert bricks.affine @ (1, 0, 0, 1) == pytest.approx(grid.affine @ (11.5, 3.5, 3.5, 1))


def test_one_of_n_steps_is_told_beside_the_mode():
    cond = Condition.of_acquisition((AxisPSF("kspace", 2.0),) * 3, (1, 1, 1), 0.01, stored=(2, 2, 2))
    plain = cond.with_mode(SAMPLE).vector(torch.ones(1), 0.1)
    for steps in (1, 2, 4, 8):
        vector = cond.with_mode(SAMPLE, steps).vector(torch.ones(1), 0.1)
        assert float(vector[0, STEP_SHARE]) == 1 / steps
        vector[0, STEP_SHARE] = 0
        assert torch.equal(vector, plain)
    assert float(cond.vector(torch.ones(1), 0.1)[0, STEP_SHARE]) == 0 == float(plain[0, STEP_SHARE])


def test_what_is_new_in_the_vector_is_told_and_ignored_by_older_weights():
    sigma = torch.ones(1)
    plain = condition().vector(sigma, 0.1)
    assert plain[0, slice_of("spacing")].tolist() == [0.0, 2.0, -1.0] and float(plain[0, slice_of("denoise")]) == 0
    cond = Condition.of_acquisition(
        (AxisPSF("kspace", 2.0, "hann"), AxisPSF("kspace", 2.0, "tukey"), AxisPSF("kspace", 2.0)),
        (1, 1, 1), 0.01, stored=(2, 2, 2), denoise=0.5, apodisation_known=True,
    )  # fmt: skip
    told = cond.vector(sigma, 0.1)
    assert told[0, slice_of("apodisation")].tolist() == [1.0, 0.5, 0.0]
    assert float(told[0, slice_of("apodisation_known")]) == 1 and float(told[0, slice_of("denoise")]) == 0.5
    forgotten = cond.drop(0.999999, torch.Generator().manual_seed(0)).vector(sigma, 0.1)
    assert not forgotten[0, slice_of("apodisation")].any() and not forgotten[0, slice_of("apodisation_known")].any()
    assert torch.equal(forgotten[0, slice_of("spacing")], told[0, slice_of("spacing")])
    weight = torch.randn(16, FIRST_VERSION)
    new = cond.vector(sigma, 0.1)
    first = new[0, :FIRST_VERSION].clone()
    first[-1] = 0  # the spare place, which has a meaning now and had none then
    assert torch.allclose(widened(weight) @ new[0], weight @ first, atol=1e-5)


def slice_of(name):
    first, count = VECTOR_LAYOUT[name]
    return slice(first, first + count)
