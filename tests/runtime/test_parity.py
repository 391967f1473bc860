"""libmrisr and `mrisr.upscale` (OpenVINO, the same tiles): the same picture, geometry and account."""

from __future__ import annotations

import numpy as np
import pytest
from libmrisr import CANCELLED, LOG, PROGRESS, Failed

import mrisr
from mrisr import grid as grids
from mrisr.physics.psf import AxisPSF

pytestmark = pytest.mark.filterwarnings("ignore::mrisr.errors.MrisrWarning")
THICK = ((34, 40, 16), np.diag([1.0, 1.0, 4.0, 1.0]))
CUT = [("kspace", 1.4)] * 3


def compared(library, model, loaded, data, affine, spread=False, python=None, **options):
    """Both results of one job, held against each other; returns libmrisr's."""
    python = {"engine": "openvino", **(python or {})}
    ours = mrisr.upscale(
        data.astype(np.float32), affine=affine, model=loaded, threads=1, return_info=True, **options, **python
    )
    found = library.upscale(model, data, affine, spread=spread, **options)
    expected, info = ours
    size = np.percentile(expected, 99.9) - np.percentile(expected, 0.1)
    assert found.data.shape == expected.shape
    assert np.abs(found.data - expected).max() <= 1e-5 * size
    np.testing.assert_allclose(found.affine, info.target.affine, rtol=1e-12, atol=1e-12)
    assert (found.info.offset, found.info.scale) == pytest.approx(info.intensity[0], rel=1e-7)
    assert (tuple(found.info.tile), found.info.tiles, found.info.tiles_run) == (
        info.tiles.size, info.tiles.count, info.tiles.computed)  # fmt: skip
    assert (tuple(found.info.box_start), tuple(found.info.box_stop)) == info.tiles.box
    note = info.consistency[0]
    assert bool(found.info.corrected) == note.applied
    if note.noise_sigma is None:
        assert found.info.noise < 0
    else:
        assert found.info.noise == pytest.approx(note.noise_sigma, rel=1e-6)
    if note.noise_sigma is not None and options.get("consistency") == "off":  # Python measures it all the same
        assert found.info.chi2_before == found.info.chi2_after == -1
    elif note.noise_sigma is not None:
        assert found.info.chi2_before == pytest.approx(note.chi2_before, rel=1e-4, abs=1e-6)
        assert found.info.chi2_after == pytest.approx(note.chi2_after, rel=1e-4, abs=1e-6)
    if spread:
        assert np.abs(found.spread - info.std.data).max() <= 1e-5 * size
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": 48},
        {"mode": "sample", "steps": 3, "seed": 2**63 + 11},
        {"samples": 2, "seed": 5, "spread": True},
        {"psf": [("gaussian", 2.0), ("kspace", 1.4), ("supergaussian", 1.8)], "voxel_size": (0.7, 0.8, 0.9)},
        {"psf": [("kspace", 2.0), ("unknown", 1.4), ("kspace", 1.4)], "consistency": "on"},
        # A correction would divide by the windows' ends, which rounding does not survive to five digits.
        {"psf": [AxisPSF("kspace", 1.4, w) for w in ("hann", "tukey", "box")], "consistency": "off"},
        {"voxel_size": (2.0, 1.0, 0.9)},
        {"factor": (1.0, 2.0, 1.5)},
        {"denoise": 0.6},
        {"denoise": 1.0, "psf": CUT},
        {"denoise": 1.0, "voxel_size": 1.4},
        {"denoise": 1.0, "psf": [("kspace", 2.9)] * 3, "consistency": "off"},
        {"denoise": 0.8, "psf": [("gaussian", 2.0), ("kspace", 1.4), ("kspace", 1.4)], "consistency": "off"},
        {"denoise": 0.5, "psf": [("gaussian", 2.0), ("kspace", 1.4), ("kspace", 1.4)], "samples": 2, "spread": True},
    ],
    ids=[
        "mean",
        "tiles",
        "sample",
        "spread",
        "profiles",
        "unknown",
        "windows",
        "coarse",
        "times",
        "part",
        "all",
        "same",
        "filled",
        "thick",
        "both",
    ],
)
def test_isotropic_scan(library, model, loaded, scan, affine, options):
    compared(library, model, loaded, scan, affine, **options)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_thick_slices_along_any_axis(library, model, loaded, head, order):
    data = head(THICK[0])
    affine = np.diag([*(THICK[1].diagonal()[list(order)]), 1.0])
    compared(library, model, loaded, np.ascontiguousarray(data.transpose(order)), affine, voxel_size=1.0)


def test_a_network_that_looks_further_and_leaves_noise_in(library, head, made_once):
    from mrisr.export.build import export_bundle
    from mrisr.weights import registry

    special = registry.load(registry.locate("base-3d"))
    model = library.open(made_once("bundle-3d", lambda folder: export_bundle(special, folder)))
    for tile in (48, 64, 88):  # which share 24, 32 and 40 voxels
        compared(library, model, special, head((40, 62, 30)), np.diag([1.4, 1.4, 1.4, 1]), voxel_size=0.7, tile=tile)
    for options in (
        dict(denoise=0.6),
        dict(denoise=0.3, psf=[("gaussian", 2.0), *CUT[1:]], consistency="off"),
        dict(denoise=1.0, psf=CUT),
        dict(denoise=1.0, psf=[("gaussian", 2.0), *CUT[1:]]),
    ):
        compared(library, model, special, head((40, 62, 30)), np.diag([1.4, 1.4, 1.4, 1]), voxel_size=0.7, **options)
    for slices, share in ((3, 0.3), (3, 1.0), (18, 0.3)):  # too few to know the noise; and of a profile that is assumed
        compared(library, model, special, head((34, 40, slices)), THICK[1], voxel_size=1.0, denoise=share)
    library.c.mrisr_close(model)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_noise_of_a_stack_too_thin_to_know_it(library, model, loaded, head, share):
    compared(library, model, loaded, head((34, 40, 3)), THICK[1], voxel_size=1.0, denoise=share)


@pytest.mark.parametrize("voxel_size", [0.9, 3.0])
@pytest.mark.parametrize("shape", [(34, 40, 30), (70, 9, 4), (34, 40, 3)])
def test_the_filter_keeps_to_the_workspace(library, model, head, shape, voxel_size):
    """Of the stated size, full of NaN, and with consistency off, so that nothing else asks for more."""
    data, guard = head(shape), 4096
    for threads in (1, 3):
        job = library.plan(model, shape, voxel_size=voxel_size, denoise=1.0, consistency="off", threads=threads)
        size = library.geometry(job).workspace_bytes
        memory = np.full(size // 4 + 2 * guard, np.nan, np.float32)
        first = -(-memory.ctypes.data // 64) * 64 - memory.ctypes.data
        memory[(first + size + 3) // 4 :] = 7.0
        own = library.run(job, data)
        given = library.run(job, data, workspace=memory.ctypes.data + first, workspace_size=size)
        library.c.mrisr_job_close(job)
        assert np.isfinite(given.data).all() and np.array_equal(own.data, given.data)
        assert (memory[(first + size + 3) // 4 :] == 7.0).all()


def test_correction_by_the_scan(library, model, loaded, head):
    psf = [("kspace", 1.0), ("kspace", 1.0), ("gaussian", 4.0)]
    found = compared(library, model, loaded, head((40, 48, 20)), THICK[1], voxel_size=1.0, psf=psf)
    assert found.info.corrected and found.info.chi2_after < found.info.chi2_before


def test_negative_values_and_whole_numbers(library, model, loaded, scan, affine):
    compared(library, model, loaded, (scan - 300).astype(np.int16), affine, psf=CUT)


def test_a_background_of_a_foreign_value(library, model, loaded, scan, affine):
    """It stays what it was, and draws nothing towards it."""
    masked = np.full_like(scan, -1024)
    masked[5:-5, 5:-5, 5:-5] = scan[5:-5, 5:-5, 5:-5]
    found = compared(library, model, loaded, masked, affine)
    assert found.info.background_value == -1024 and (found.data == -1024).mean() > 0.1
    assert found.data[found.data != -1024].min() > -512  # half way to it


@pytest.mark.parametrize("scale", [0, 0.25, 0.01])
def test_whole_numbers_out(library, model, loaded, scan, affine, scale):
    """int16 out is what numpy makes of the float result: rounded, ties to even, clipped and counted."""
    job = library.plan(model, scan.shape, affine)
    stored = np.full(tuple(library.geometry(job).shape), 12345, np.int16)
    found = library.run(job, scan.astype(np.int16), output_int16=stored.ctypes.data, output_int16_scale=scale)
    library.c.mrisr_job_close(job)
    used, whole = found.info.output_int16_scale, np.rint(found.data.astype(np.float64) / (scale or 1))
    assert used == (scale or 1)  # a scan of whole numbers that fits
    np.testing.assert_array_equal(stored, whole.clip(-32768, 32767))
    assert found.info.output_int16_clipped == ((whole < -32768) | (whole > 32767)).sum()
    assert (found.info.output_int16_clipped > 0) == (scale == 0.01)
    expected = mrisr.upscale(scan, affine=affine, model=loaded, engine="openvino", threads=1)
    assert (
        np.abs(stored.clip(0, None) * used - expected.clip(0, whole.clip(0, 32767).max() * used)).max()
        <= 0.5 * used + 0.02
    )


def test_tiles_of_one_size_change_little(library, model, head):
    """A slab thinner than the fixed tile: beyond its ends the edge is repeated in place of zeros."""
    data = head((40, 48, 6))
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    plain = library.upscale(model, data, affine, voxel_size=1.0)
    fixed = library.upscale(model, data, affine, voxel_size=1.0, tile=64, tile_fixed=1)
    assert tuple(fixed.info.tile) == (64, 64, 64) and tuple(plain.info.tile) != (64, 64, 64)
    assert np.isfinite(fixed.data).all()
    per_slice = np.sqrt(((fixed.data - plain.data) ** 2).mean(axis=(0, 1))) / np.percentile(plain.data, 99.9)
    assert per_slice.max() <= 0.01  # the network's field of view reaches half a tile


def test_a_new_size_compiles_nothing_where_tiles_are_fixed(library, folder, head):
    """Other scans, other jobs: what the first has compiled serves them all, and gives the same."""
    said = []
    log = LOG(lambda user, level, text: said.append(text.decode()))
    model = library.open(folder, log=log)
    first = library.upscale(model, head((34, 40, 30)), voxel_size=0.8, tile=48, tile_fixed=1)
    for shape in ((30, 44, 6), (52, 40, 33)):
        library.upscale(model, head(shape), voxel_size=0.8, tile=48, tile_fixed=1)
    again = library.upscale(model, head((34, 40, 30)), voxel_size=0.8, tile=48, tile_fixed=1)
    library.c.mrisr_close(model)
    assert len([text for text in said if text.startswith("plan: ")]) == 4
    assert len([text for text in said if text.startswith("engine: ")]) == 1
    assert np.array_equal(first.data, again.data)


def test_a_scan_with_hardly_any_foreground(library, model, loaded, affine):
    data = np.zeros((24, 24, 24), np.float32)
    data[11:13, 12, 12] = 100
    found = compared(library, model, loaded, data, affine)
    assert found.info.noise < 0


def test_percentiles_of_a_large_scan_are_of_the_same_subset(library, model, loaded, head):
    data = head((170, 165, 160))
    compared(library, model, loaded, data, np.eye(4), voxel_size=4.0)


def test_grids(library, model):
    rng = np.random.default_rng(4)
    for _ in range(40):
        shape = tuple(int(n) for n in rng.integers(8, 40, 3))
        sizes = np.round(rng.uniform(0.6, 5.0, 3), int(rng.integers(1, 4)))
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = np.float32(turn * sizes), rng.uniform(-90, 90, 3)
        target = {"voxel_size": float(np.round(rng.uniform(0.6, 1.5), 2))} if rng.random() < 0.5 else {"factor": 1.5}
        job = library.plan(model, shape, affine, **target)
        found = library.geometry(job)
        library.c.mrisr_job_close(job)
        expected = grids.plan(grids.Grid(shape, affine), **target)
        assert tuple(found.shape) == expected.shape
        np.testing.assert_allclose(np.reshape(found.affine, (4, 4)), expected.affine, rtol=1e-12, atol=1e-11)


def test_a_network_that_sees_the_whole_head(library, random_model, head, affine, tmp_path):
    """Group norm and attention: one piece, aligned to the windows; Python has it in PyTorch."""
    from dataclasses import replace

    from mrisr.export.build import export_bundle

    tiny = replace(random_model("tiny"), meta={"preset": "tiny", "sigma_data": 0.05, "name": "tiny"})
    export_bundle(tiny, tmp_path / "tiny")
    model = library.open(tmp_path / "tiny")
    try:
        compared(library, model, tiny, head((30, 34, 28)), affine, python={"engine": "torch"})
        with pytest.raises(Failed, match="normalises over the whole head"):
            library.plan(model, (30, 34, 28), affine, tile=96)
    finally:
        library.c.mrisr_close(model)


def test_runs_repeat_and_threads_agree(library, model, scan, affine):
    one, again, two = (library.upscale(model, scan, affine, threads=t).data for t in (1, 1, 2))
    assert np.array_equal(one, again)
    assert np.abs(one - two).max() <= 1e-5 * (one.max() - one.min())


def test_cancelling_leaves_the_job_usable(library, model, scan, affine):
    job = library.plan(model, scan.shape, affine, tile=48)
    asked = []
    stop = PROGRESS(lambda user, fraction: asked.append(fraction) or fraction > 0.1)
    with pytest.raises(Failed, match="cancelled by the caller") as error:
        library.run(job, scan, progress=stop)
    assert error.value.status == CANCELLED and asked[-1] < 0.3
    assert np.array_equal(library.run(job, scan).data, library.upscale(model, scan, affine, tile=48).data)
    library.c.mrisr_job_close(job)
