"""The whole way, with random weights: what must hold whatever the model has learnt."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

import mrisr
from mrisr import grid as grids
from mrisr.diffusion.precond import Denoiser
from mrisr.errors import BackendError, MemoryBudgetError, MrisrWarning, UsageError
from mrisr.infer import memory
from mrisr.infer.fade import Limits
from mrisr.nn.presets import build
from mrisr.ops.resample import apply_axes
from mrisr.physics.degrade import start_matrices
from mrisr.physics.foreground import tissue
from mrisr.physics.psf import auto_psf
from mrisr.volume import Volume
from mrisr.weights import registry
from mrisr.weights.registry import LoadedModel


def run(scan, model, size=1.0, **options):
    given = {"factor": 2, "input_voxel_size": size, "threads": 1, "return_info": True, **options}
    return mrisr.upscale(scan, model=model, **given)


def spread_of(x):
    return np.percentile(x, 99.9) - np.percentile(x, 0.1)


def plain(scan, factor=2):
    """The start alone: interpolation onto the target grid."""
    source = grids.Grid(scan.shape, np.eye(4))
    target = grids.plan(source, factor=factor)
    matrices = start_matrices(
        source.shape, source.voxel_size, target.shape, target.voxel_size, auto_psf(source.voxel_size)[0]
    )
    return apply_axes(torch.from_numpy(scan), matrices).numpy()


@pytest.fixture(scope="module")
def model(random_model):
    return random_model("local")


@pytest.fixture(scope="module")
def scan(head):
    return head((40, 48, 36))


@pytest.fixture(scope="module")
def mean(scan, model):
    return run(scan, model)


@pytest.fixture
def unlimited(monkeypatch):
    """Random networks answer with values that no scan can have; what is looked at is what comes before the limits."""
    monkeypatch.setattr("mrisr.infer.fade.Limits.of", lambda scan, zero: Limits(-1e30, 1e30))


@pytest.mark.usefixtures("unlimited")
def test_an_untrained_network_is_plain_interpolation(scan):
    untrained = LoadedModel(Denoiser(build("student"), 0.05), "untrained", {}, "", None)
    result, _ = run(scan, untrained)
    differs = np.abs(result - plain(scan)) > 1e-5 * spread_of(scan)
    head = tissue(scan / np.percentile(scan, 99)).repeat(2, 0).repeat(2, 1).repeat(2, 2) > 0
    assert not differs[ndimage.binary_erosion(head, np.ones((3, 3, 3)), iterations=2, border_value=1)].any()
    # In air another interpolation stands: cubic, and the nearest voxel beyond the outer ones.
    at = np.stack(np.meshgrid(*(grids.axis_positions(n, 2 * n, 0.5) for n in scan.shape), indexing="ij"))
    cubic = ndimage.map_coordinates(scan, at, order=3, mode="nearest")
    air = ~ndimage.binary_dilation(head, np.ones((3, 3, 3)), iterations=2)
    air[:4], air[-4:], air[:, :4], air[:, -4:], air[..., :4], air[..., -4:] = (False,) * 6  # SciPy continues otherwise
    assert air.any() and np.abs(result - cubic)[air].max() < 1e-3 * spread_of(scan)


def test_the_residual_is_added_in_tissue(scan, mean):
    change = np.abs(mean[0] - plain(scan)) / spread_of(scan)
    centre = tuple(slice(n // 2 - 8, n // 2 + 8) for n in change.shape)
    assert change[centre].mean() > 1e-4


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_mean_is_bit_equal_for_every_seed(scan, model, engine):
    first, info = run(scan, model, engine=engine, seed=0)
    second, _ = run(scan, model, engine=engine, seed=12345)
    assert info.mode == "mean" and info.engine.name == engine and np.array_equal(first, second)


def test_engines_agree(scan, model, mean):
    other, _ = run(scan, model, engine="torch")
    assert np.abs(other - mean[0]).max() < 1e-5 * spread_of(scan)


def test_samples_depend_on_the_seed_alone(scan, model):
    first, info = run(scan, model, mode="sample", seed=1)
    again, _ = run(scan, model, mode="sample", seed=1)
    other, _ = run(scan, model, mode="sample", seed=2)
    assert info.mode == "sample" and np.array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4 * spread_of(scan)


@pytest.mark.usefixtures("unlimited")
def test_several_samples_give_their_mean_and_spread(scan, model):
    both, info = run(scan, model, samples=2, steps=2, seed=3)
    assert info.mode == "sample" and info.samples == 2 and info.steps == 2
    assert isinstance(info.std, Volume) and info.std.data.shape == both.shape
    assert info.std.data.min() >= 0 and info.std.data.max() > 0
    one, _ = run(scan, model, samples=1, steps=2, seed=3)
    # Two values a and b: a - mean = (a - b) / 2, and their standard deviation (n - 1) is |a - b| / sqrt(2).
    assert np.abs(np.abs(one - both) * np.sqrt(2) - info.std.data).max() < 1e-4 * spread_of(scan)


def test_the_spread_comes_with_its_calibration_where_there_is_one(scan, model):
    calibrated = replace(model, meta={"uncertainty": [{"samples": 2, "steps": 1, "scale": {"0.5": 0.9, "0.9": 2.1}}]})
    _, info = run(scan, calibrated, samples=2)
    assert info.std_scale == {0.5: 0.9, 0.9: 2.1}
    assert json.loads(info.to_json())["std_scale"] == {"0.5": 0.9, "0.9": 2.1}
    assert run(scan, calibrated, samples=3)[1].std_scale is None
    assert run(scan, calibrated)[1].std_scale is None and run(scan, model, samples=2)[1].std_scale is None


@pytest.mark.parametrize("mode", ["mean", "sample"])
def test_tiles_come_close_to_one_piece(head, model, mode):
    scan = head((61, 53, 47), air=0.1)
    whole, info = run(scan, model, mode=mode)
    tiled, tiled_info = run(scan, model, mode=mode, tile=64)
    assert (info.tiles.kind, tiled_info.tiles.kind) == ("whole", "tiles")
    assert tiled_info.tiles.count > 3
    residual = np.abs(whole - plain(scan)).max()
    # Random weights carry influence much further than trained ones do (measured here: 9 %), so this only finds
    # gross errors, such as a tile in the wrong place; the shipped weights are held to a real bound below.
    seam = np.abs(tiled - whole).max()
    assert seam < 0.15 * residual, (seam, residual)


@pytest.mark.skipif("base" not in registry.available(), reason="no weights are shipped yet")
def test_tiles_of_the_shipped_model_leave_no_visible_seam(head):
    scan = head((61, 53, 47), air=0.1)
    whole, _ = run(scan, "base")
    tiled, info = run(scan, "base", tile=80)
    assert info.tiles.kind == "tiles"
    assert np.abs(tiled - whole).max() < 2e-3 * spread_of(scan)


def test_each_frame_is_handled_on_its_own(head, model):
    frames = [head((24, 28, 20), seed=k) * (k + 1) for k in range(2)]
    series, info = run(np.stack(frames, axis=-1), model, engine="torch")
    assert series.shape == (48, 56, 40, 2) and info.frames == 2 and len(info.intensity) == 2
    for k, frame in enumerate(frames):
        alone, _ = run(frame, model, engine="torch")
        assert np.abs(series[..., k] - alone).max() <= 1e-6 * spread_of(frame)


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 17, 5), (33, 9, 50)])
def test_small_and_odd_sizes(head, model, shape):
    rng = np.random.default_rng(0)
    scan = (100 + 10 * rng.standard_normal(shape)).astype(np.float32)
    result, _ = run(scan, model, factor=1.5)
    assert result.shape == grids.plan(grids.Grid(shape, np.eye(4)), factor=1.5).shape
    assert np.isfinite(result).all()


def test_intensities_are_unscaled(scan, model):
    """The network sees normalised values, so its result scales with the input."""
    result, info = run(scan, model, engine="torch")
    scaled, _ = run(scan * 1000, model, engine="torch")
    assert np.abs(scaled / 1000 - result).max() < 1e-5 * spread_of(scan)
    assert info.intensity[0][1] == pytest.approx(np.percentile(scan[scan > 100], 99), rel=0.2)


def test_air_around_a_head_changes_nothing(head, model):
    """With a spline start, which is local; a Fourier start feels the size of the field of view by itself."""
    scan = np.pad(head((40, 40, 40), noise=0.0), 16)
    padded = np.pad(scan, 40)  # 80 voxels of the target grid on every side
    local = {"psf": "gaussian", "consistency": "off"}
    alone, _ = run(scan, model, **local)
    inside = run(padded, model, **local)[0][80:-80, 80:-80, 80:-80]
    tissue = plain(scan) > 100
    assert np.abs(inside - alone)[tissue].max() < 1e-5 * spread_of(scan)


@pytest.mark.usefixtures("unlimited")
def test_no_step_where_the_processed_box_ends(model, monkeypatch):
    """Noisy air all around: at the border of the box the residual has faded out."""
    rng = np.random.default_rng(0)
    scan = np.abs(20 * rng.standard_normal((96, 60, 60))).astype(np.float32)
    scan[36:60, 24:36, 24:36] += 1000
    # Without anything certain all is head: the fade of the air is not in the way of what is looked at.
    monkeypatch.setattr("mrisr.infer.finish.tissue", lambda v, *rest: np.ones(v.shape, np.uint8))
    result, info = run(scan, model)
    low = info.tiles.box[0][0]
    assert low > 0
    residual = np.abs(result - plain(scan))
    assert residual[:low].max() < 1e-5 * 1000
    first, deep = residual[low : low + 2].max(), residual[low + 8 : low + 24].max()
    assert first < 0.2 * deep


def test_info_says_what_was_done(scan, mean):
    result, info = mean
    assert info.input.shape == scan.shape and info.target.shape == result.shape
    assert info.target.voxel_size == pytest.approx((0.5, 0.5, 0.5))
    assert info.engine.name == "openvino" and info.engine.threads == 1 and info.engine.precision == "float32"
    assert [axis.profile for axis in info.resolution] == ["kspace"] * 3
    assert info.resolution[0].measured_to == 0.5 and info.resolution[0].synthesised_to == 1.0
    assert "assumed" in info.resolution_from
    assert info.consistency[0].applied is False and info.consistency[0].chi2_before >= 0
    assert {"start", "network", "consistency"} <= set(info.seconds)
    assert info.memory_expected <= info.memory_budget
    assert "not a medical device" in info.notice
    told = json.loads(info.to_json())
    assert told["tiles"]["active_fraction"] == pytest.approx(info.tiles.active_fraction)
    assert told["versions"]["torch"] and "std" not in told


def test_consistency_needs_a_stated_point_spread(scan, model):
    wrong = replace(model, denoiser=Denoiser(model.denoiser.net, 2.0))  # a residual far beyond the noise
    _, info = run(scan, wrong, psf="gaussian")
    note = info.consistency[0]
    assert note.applied and "stated by the caller" in note.why
    assert note.chi2_before > 1 and note.chi2_after < 1.1
    _, off = run(scan, wrong, psf="gaussian", consistency="off")
    assert not off.consistency[0].applied and off.consistency[0].why == "switched off"
    assert not run(scan, wrong)[1].consistency[0].applied
    _, on = run(scan, wrong, consistency="on")  # assumed to be a cut of k-space, whose band is left alone anyway
    assert "asked for; not needed" in on.consistency[0].why


def test_a_correction_by_another_point_spread_is_warned_about(scan, model):
    """Three voxels wide, which no scan with this detail can be: what explains it then is ringing."""
    with pytest.warns(MrisrWarning, match=r"consistency changed the result by \d+ % .* state another \(--psf\)"):
        _, info = run(scan, model, psf=[("gaussian", 3.0)] * 3)
    assert any("consistency changed" in text for text in info.warnings)


def test_a_finer_input_is_warned_about(head, model):
    with pytest.warns(MrisrWarning, match=r"input \(0.5 x 1 x 1 mm\) is already finer .* along axis 0"):
        _, info = run(head((40, 24, 24)), model, size=(0.5, 1, 1), factor=None, voxel_size=0.7)
    assert any("already finer" in text for text in info.warnings)
    assert info.resolution[0].measured_to == info.resolution[0].synthesised_to


def test_the_slice_axis_may_be_any_axis(head, model):
    """The network always sees it last, so turning a scan turns its result."""
    scan = head((12, 40, 36))
    result, _ = run(scan, model, size=(4.0, 1.0, 1.0), factor=(4, 1, 1))
    turned, _ = run(scan.transpose(1, 2, 0), model, size=(1.0, 1.0, 4.0), factor=(1, 1, 4))
    assert np.abs(turned.transpose(2, 0, 1) - result).max() < 1e-5 * spread_of(scan)


def test_beyond_the_trained_range_is_warned_about(head, model):
    ranged = replace(model, meta={"trained_range": {"isotropic": [1.0, 4.0], "slice": [1.0, 8.0]}})
    with pytest.warns(MrisrWarning, match=r"axis 0: 3 mm acquired to 0.6 mm is 5.00x finer, .* 1x to 4x \(isotropic\)"):
        _, info = run(head((20, 20, 20)), ranged, size=3.0, factor=5)
    assert len(info.warnings) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", MrisrWarning)
        run(head((20, 40, 40)), ranged, size=(4.0, 1, 1), factor=(5, 1, 1))  # a slice axis: up to 8x


def test_a_small_budget_takes_tiles_and_a_tiny_one_is_refused(head, model, monkeypatch):
    # What the test process happens to hold differs from call to call.
    monkeypatch.setattr(memory, "resident", lambda: 500 * memory.MB)
    scan = head((64, 64, 64), air=0.0)
    with pytest.raises(MemoryBudgetError, match="smallest that works is") as caught:
        run(scan, model, memory="10MB")
    least = memory.parse_budget(str(caught.value).split("works is ")[1].split()[0])
    result, info = run(scan, model, memory=least + 50 * memory.MB, engine="openvino")
    assert info.tiles.kind == "tiles" and info.memory_expected <= info.memory_budget
    assert np.isfinite(result).all()


def test_where_the_budget_holds_no_whole_head_auto_goes_layer_by_layer(head, model, monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda: 500 * memory.MB)
    scan = head((64, 64, 64), air=0.0)
    exact, told = run(scan, model, tile="exact", memory="8GB")
    budget = told.memory_expected + memory.MB
    result, info = run(scan, model, memory=budget)
    assert (info.engine.name, info.tiles.kind) == ("torch", "exact") and not info.tiles.spilled
    assert "layer by layer, because the budget" in info.engine.why
    assert info.memory_expected <= budget and np.array_equal(result, exact)
    _, info = run(scan, model, memory="8GB")
    assert (info.engine.name, info.tiles.kind) == ("openvino", "whole")
    _, info = run(scan, model, memory=budget, engine="openvino")
    assert (info.engine.name, info.tiles.kind) == ("openvino", "tiles"), "an engine asked for by name stays"


def test_a_stated_tile_that_does_not_fit_is_refused(scan, model):
    with pytest.raises(MemoryBudgetError):
        run(scan, model, memory=memory.resident() + 60 * memory.MB, tile=96)


def test_progress_tells_stages_in_order_up_to_one(scan, model):
    told = []
    run(scan, model, tile=48, progress=lambda stage, fraction: told.append((stage, fraction)))
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages[-4:] == ["start", "network", "consistency", "finish"]
    network = [fraction for stage, fraction in told if stage == "network"]
    assert network == sorted(network) and network[0] == 0 and network[-1] == 1 and len(network) > 4


def test_an_interrupt_passes_through_and_leaves_things_usable(scan, model, mean):
    def stop(stage, fraction):
        if stage == "network":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(scan, model, progress=stop)
    assert np.array_equal(run(scan, model)[0], mean[0])


def test_arguments_are_checked(scan, model):
    for wrong in (
        {"mode": "mean", "steps": 2}, {"mode": "mean", "samples": 2}, {"mode": "best"}, {"steps": 0},
        {"steps": 1001}, {"samples": 10**12}, {"psf": ("kspace", "kspace", ("gaussian", 1e9))}, {"factor": 1e9},
        {"samples": 1.5}, {"seed": "a"}, {"consistency": "yes"}, {"progress": 3},
        {"voxel_size": -1, "factor": None},
        {"device": "tpu"}, {"engine": "onnx"}, {"memory": "lots"}, {"tile": 8}, {"psf": "round"},
        {"threads": 0},
    ):  # fmt: skip
        with pytest.raises(UsageError), warnings.catch_warnings():
            warnings.simplefilter("error")
            run(scan, model, **wrong)


def test_what_a_cut_of_kspace_measured_is_left_as_it_was(scan, model):
    """Whatever the network says, going back to the coarse grid gives the scan; across slices it may correct."""
    wild = replace(model, denoiser=Denoiser(model.denoiser.net, 2.0))
    _, info = run(scan, wild, psf="kspace", consistency="off")
    assert info.consistency[0].chi2_after < 1e-4
    _, info = run(scan, wild, psf="gaussian", consistency="off")
    assert info.consistency[0].chi2_after > 1


def test_a_network_with_group_norm_is_not_tiled(head, random_model):
    with pytest.raises(BackendError, match="normalises over the whole head"):
        run(head((160, 60, 60), air=0.0), random_model("tiny"), engine="torch", tile=128, factor=1.5)
