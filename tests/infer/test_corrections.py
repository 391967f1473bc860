"""Corrections on the way to the start: a distorted phantom comes back where it was, and the network is told so."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mrisr
from mrisr.diffusion.precond import Denoiser
from mrisr.errors import InputError, MrisrWarning, UsageError
from mrisr.grid import Grid, plan
from mrisr.infer.corrections import Corrections, Corrector
from mrisr.infer.fade import Limits
from mrisr.nn.condition import Condition
from mrisr.nn.presets import build
from mrisr.nn.unet import UNetConfig
from mrisr.physics import bias, smooth
from mrisr.physics.gradnl import Nonlinearity
from mrisr.physics.psf import auto_psf
from mrisr.volume import Volume
from mrisr.weights.registry import LoadedModel

CENTRES = np.array([[-21.0, 17.0, 14.0], [18.0, -22.0, -16.0], [4.0, 20.0, -19.0], [-3.0, -4.0, 2.0]])
WIDTHS, HEIGHTS = (6.5, 7.0, 6.0, 7.5), (900.0, 700.0, 800.0, 1000.0)


class Bend:
    """r -> (x + bend y^2, y, (1 + stretch) z): its inverse and its determinant, 1 + stretch, are known."""

    degree = 2

    def __init__(self, bend=0.009, stretch=0.08):
        self.bend, self.stretch, self.name = bend, stretch, "a bend"

    def displacement_at(self, points):
        x, y, z = points
        return torch.stack([self.bend * y * y, 0 * y, self.stretch * z])

    def gradient_at(self, points):
        found = points.new_zeros(3, 3, points.shape[1])
        found[0, 1], found[2, 2] = 2 * self.bend * points[1], self.stretch
        return found

    def scan(self, grid: Grid) -> np.ndarray:
        """What a scanner with this distortion shows of the phantom on `grid`."""
        x, y, z = smooth.world(grid.affine, [np.arange(n) for n in grid.shape]).numpy()
        inside = np.stack([x - self.bend * y * y, y, z / (1 + self.stretch)])
        return phantom(inside).reshape(grid.shape) / (1 + self.stretch)


def phantom(points) -> np.ndarray:
    """Blobs at CENTRES on air; points [3, P] mm."""
    apart = points[:, None] - CENTRES.T[..., None]
    blobs = np.exp(-0.5 * (apart**2).sum(0) / np.array(WIDTHS)[:, None] ** 2)
    return np.array(HEIGHTS) @ blobs


def grid_of(shape, sizes, axes=(0, 1, 2), flips=(1, 1, 1), turn=0.0) -> Grid:
    """About the isocentre; stored axis i runs along world axis axes[i], then all turned about x."""
    affine, (c, s) = np.eye(4), (np.cos(turn), np.sin(turn))
    for stored, (axis, flip, size) in enumerate(zip(axes, flips, sizes)):
        affine[:3, stored] = np.eye(3)[axis] * flip * size
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ affine[:3, :3]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


@pytest.fixture(scope="module")
def untrained():
    return LoadedModel(Denoiser(build("tiny"), 0.05), "untrained", {}, "", None)


def run(scan, grid, model, **options):
    given = {"factor": 2, "engine": "torch", "threads": 1, "return_info": True, "gradnl_done": "none", **options}
    if not isinstance(scan, nib.Nifti1Image | Volume):
        given["affine"] = grid.affine
    return mrisr.upscale(scan, model=model, **given)


def misplaced(image: np.ndarray, affine: np.ndarray) -> tuple[float, float]:
    """(largest distance of a blob from its place in voxels, largest relative error of its brightness)."""
    grid = Grid(image.shape, affine)
    points = smooth.world(grid.affine, [np.arange(n) for n in grid.shape]).numpy()
    far, bright = [], []
    for centre in CENTRES:
        near = np.linalg.norm(points - centre[:, None], axis=0) < 9
        found, truth = image.ravel()[near], phantom(points[:, near])
        here, there = (points[:, near] @ v / v.sum() for v in (found, truth))
        # Within a fixed ball the centre of mass moves by less than the blob: the gradient tells by how much.
        basis = np.stack([phantom(points[:, near] + e[:, None]) - phantom(points[:, near] - e[:, None])
                          for e in 0.5 * np.eye(3)])  # fmt: skip
        basis = np.concatenate([basis, truth[None]])
        solution = np.linalg.lstsq(basis.T, found - truth, rcond=None)[0]
        far.append(max(np.linalg.norm(solution[:3]), np.linalg.norm(here - there)) / min(grid.voxel_size))
        bright.append(abs(solution[3]))
    return max(far), max(bright)


@pytest.mark.parametrize(
    ("grid", "psf"),
    [
        (grid_of((36, 40, 34), (2.2, 2.2, 2.2)), "auto"),
        (grid_of((34, 36, 40), (2.2, 2.2, 2.2), axes=(2, 0, 1), flips=(-1, 1, -1), turn=0.3), "auto"),
        (grid_of((20, 56, 60), (4.0, 1.4, 1.4), axes=(2, 1, 0), flips=(1, -1, -1)), ("gaussian", "kspace", "kspace")),
    ],
    ids=["plain", "turned", "slices_first"],
)
def test_a_distorted_phantom_comes_back_within_a_tenth_of_a_voxel(grid, psf, untrained):
    bend = Bend()
    scan = bend.scan(grid).astype(np.float32)
    before, info = run(scan, grid, untrained, psf=psf)
    assert misplaced(before, np.array(info.target.affine))[0] > 1 and info.gradnl.state == "absent"
    after, info = run(scan, grid, untrained, psf=psf, gradnl=bend)
    far, bright = misplaced(after, np.array(info.target.affine))
    assert far < 0.1 and bright < 0.01
    assert info.gradnl.state == "given" and info.gradnl.source == "a bend"
    assert info.gradnl.det == pytest.approx((1.08, 1.08), abs=1e-3) and info.gradnl.largest_mm > 5
    assert "displaced" in info.consistency[0].why and not info.consistency[0].applied
    assert "trained without it" in info.gradnl.guidance
    assert info.to_dict()["gradnl"]["told"] == info.gradnl.guidance


def test_frames_tensors_images_and_displacement_fields(untrained, tmp_path):
    grid, bend = grid_of((30, 34, 30), (2.4, 2.4, 2.4)), Bend()
    scan = bend.scan(grid).astype(np.float32)
    expected, _ = run(scan, grid, untrained, gradnl=bend)
    frames, _ = run(np.stack([scan, 2 * scan], axis=-1), grid, untrained, gradnl=bend)
    assert np.abs(frames[..., 0] - expected).max() < 0.01 and np.abs(frames[..., 1] - 2 * expected).max() < 0.05
    tensor, _ = run(torch.from_numpy(scan), grid, untrained, gradnl=bend)
    assert isinstance(tensor, torch.Tensor) and np.abs(tensor.numpy() - expected).max() < 0.01
    wide = grid_of((24, 26, 24), (4.0, 4.0, 4.0))
    points = smooth.world(wide.affine, [np.arange(n) for n in wide.shape])
    field = bend.displacement_at(points).reshape(3, *wide.shape).permute(1, 2, 3, 0).numpy().astype(np.float32)
    nib.save(nib.Nifti1Image(field, wide.affine), tmp_path / "field.nii")
    field_volume = Volume(field, wide.affine, from_outside=False)
    for given in (field_volume, nib.Nifti1Image(field, wide.affine), tmp_path / "field.nii"):
        found, info = run(scan, grid, untrained, gradnl=given)
        assert np.abs(found - expected)[3:-3, 3:-3, 3:-3].max() < 10 and info.gradnl.largest_mm > 3


def test_what_the_scanner_corrected_is_not_corrected_again(untrained):
    grid, bend = grid_of((30, 34, 30), (2.4, 2.4, 2.4)), Bend()
    plain = Volume(bend.scan(grid), grid.affine)
    done = Volume(plain.data, grid.affine, meta={"ImageType": ["ORIGINAL", "DIS3D"]})
    with pytest.warns(MrisrWarning, match="corrected by the scanner already"):
        found, info = run(done, grid, untrained, gradnl=bend, gradnl_done="auto")
    assert np.array_equal(found.data, run(plain, grid, untrained)[0].data)
    assert info.gradnl.done == "3D" and info.gradnl.largest_mm == 0 and "DIS3D" in info.warnings[0]
    part, info = run(plain, grid, untrained, gradnl=bend, gradnl_done="2D", slice_axis=2)
    assert info.gradnl.done == "2D" and info.gradnl.largest_mm < 3.5  # the stretch alone


def test_a_known_field_is_divided_by_told_and_put_back(head, untrained, monkeypatch):
    # What a scan can have depends on whether its field is in it; looked at is what comes before.
    monkeypatch.setattr("mrisr.infer.fade.Limits.of", lambda scan, zero: Limits(-1e30, 1e30))
    scan = head((40, 44, 36), noise=0.0)
    field = bias.bias_field(scan.shape, torch.Generator().manual_seed(1), 0.2, 0.06)
    grid = Grid(scan.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    shaded = scan * field.numpy()
    expected, _ = run(scan, grid, untrained)
    found, info = run(shaded, grid, untrained, bias=field)
    assert np.abs(found - expected).max() < 1.0
    assert info.bias.state == "given" and info.bias.span == pytest.approx((float(field.min()), float(field.max())))
    kept, info = run(shaded, grid, untrained, bias=Volume(field.numpy(), grid.affine), bias_out="kept")
    there = bias.on_grid(field, grid, plan(grid, factor=2)).numpy()
    assert info.bias.output == "kept" and np.abs(kept - expected * there).max() < 1.0
    # Displaced as well: the field lies in the scan, so it moves with it.
    bend = Bend(0.004, 0.03)
    straight, _ = run(scan, grid, untrained, gradnl=bend)
    both, _ = run(shaded, grid, untrained, gradnl=bend, bias=field)
    again, _ = run(shaded, grid, untrained, gradnl=bend, bias=field, bias_out="kept")
    shown, _ = run(shaded, grid, untrained, gradnl=bend)
    assert np.abs(both - straight).max() < 1.0
    assert np.abs(again - shown)[2:-2, 2:-2, 2:-2].max() < 0.02 * shown.max()


def test_a_field_is_estimated_where_that_is_asked_for(head, untrained):
    pytest.importorskip("SimpleITK")
    scan = head((40, 44, 36))
    field = bias.bias_field(scan.shape, torch.Generator().manual_seed(2), 0.3, 0.06).numpy()
    grid = Grid(scan.shape, np.diag([4.0, 4.0, 4.0, 1.0]))
    flat, info = run(scan * field, grid, untrained, bias="auto")
    shaded, _ = run(scan * field, grid, untrained)
    ideal, _ = run(scan, grid, untrained)
    inside = ideal > 300
    uneven = [np.std(np.log(np.maximum(v[inside], 1) / ideal[inside])) for v in (flat, shaded)]
    assert uneven[0] < 0.7 * uneven[1]
    assert info.bias.state == "estimated" and "N4" in info.bias.source and "bias" in info.seconds


class Told(torch.nn.Module):
    """A network that answers with one of the channels that it is told, at full resolution."""

    config = UNetConfig(widths=(8, 8, 16), encoder=(1, 1), middle=1, decoder=(1, 1))

    def __init__(self, channel: int):
        super().__init__()
        self.channel, self.weight = channel, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, y, vector, guidance, active=None):
        return F.interpolate(guidance[:, self.channel : self.channel + 1], scale_factor=8.0, mode="nearest")


def answers(channel: int) -> LoadedModel:
    meta = {"guidance": ["gradnl", "bias"]}
    return LoadedModel(Denoiser(Told(channel).requires_grad_(False), 0.05), "told", meta, "", None)


@pytest.mark.parametrize("channel", [0, 1, 2, 3, 4])
def test_every_tile_is_told_what_belongs_to_it_in_the_networks_own_axes(channel, untrained, monkeypatch):
    """Slices along the first axis: the network sees it last, and the displacement along it in channel 3."""
    # the local mean is the answer here
    monkeypatch.setattr("mrisr.infer.denoise.outside_band", lambda answer, *how: answer)
    grid = grid_of((22, 60, 56), (3.6, 1.3, 1.3), axes=(2, 0, 1), flips=(-1, 1, 1))
    bend, size = Bend(), (1.2, 1.3, 1.3)
    scan = bend.scan(grid).astype(np.float32) + 500
    field = (1 + 0.004 * np.arange(60))[None, :, None] * np.ones(scan.shape, np.float32)
    common = dict(factor=None, voxel_size=size, gradnl=bend, bias=field.astype(np.float32))
    plain, info = run(scan, grid, untrained, **common)
    whole, _ = run(scan, grid, answers(channel), **common)
    tiled, tiled_info = run(scan, grid, answers(channel), tile=48, **common)
    assert (tiled_info.tiles.kind, tiled_info.gradnl.guidance) == ("tiles", "told to the network")
    scale = info.intensity[0][1]
    assert np.abs(whole - tiled).max() < 1e-3 * scale
    target = Grid(info.target.shape, np.array(info.target.affine))
    first = [np.arange(n // 8) * 8 + 3.5 for n in target.shape]
    points = smooth.world(target.affine, first)
    stored = np.linalg.inv(target.affine[:3, :3]) @ bend.displacement_at(points).numpy() / 8
    order = (1, 2, 0)
    where = np.linalg.inv(grid.affine) @ np.vstack([points + bend.displacement_at(points), np.ones(points.shape[1])])
    log_bias = np.log(1 + 0.004 * np.clip(where[1], -0.5, 59.5))
    log_det = np.full(points.shape[1], np.log(1.08))
    expected = [log_bias, *(stored[axis] for axis in order), log_det][channel].reshape([len(f) for f in first])
    got = (whole - plain) / scale / 0.05
    middle = got[tuple(slice(3, 8 * len(f), 8) for f in first)]
    inner = (slice(1, -1),) * 3
    assert np.abs(middle[inner] - expected[inner]).max() < 0.02 + 0.02 * np.abs(expected).max()


def test_engines_and_exact_tiling_are_told_the_same(random_model):
    grid, bend = grid_of((34, 36, 32), (2.0, 2.0, 2.0)), Bend()
    scan = bend.scan(grid).astype(np.float32) + 300
    model = random_model("local")
    learnt = replace(model, meta={"config": {"gradnl": 0.3, "bias": 0.0}})
    silent, _ = run(scan, grid, model, gradnl=bend)
    told, info = run(scan, grid, learnt, gradnl=bend)
    assert info.gradnl.guidance == "told to the network" and np.abs(told - silent).max() > 1
    for options in (dict(engine="openvino"), dict(tile="exact")):
        other, _ = run(scan, grid, learnt, gradnl=bend, **options)
        assert np.abs(other - told).max() < 1e-5 * 1300


def test_mirrored_scans_are_told_mirrored_displacements():
    grid, bend = grid_of((30, 33, 41), (2.0, 2.0, 2.0), turn=0.2), Bend()
    corrector = Corrector(
        Corrections(Nonlinearity(bend, "bend")),
        grid,
        plan(grid, factor=1.5),
        auto_psf((2.0,) * 3)[0],
        learnt=("gradnl",),
    )
    cond = Condition.of_acquisition(auto_psf((2.0,) * 3)[0], (1.0,) * 3, None, stored=(2.0,) * 3)
    order, mirrored = (0, 2, 1), (0, 2)
    told = corrector.add_guidance(cond, order, mirrored).guidance[0]
    target = plan(grid, factor=1.5)
    assert told.shape[1:] == tuple(-(-target.shape[i] // 8) for i in order)
    turned = [8 * 1 + 3.5, 8 * 2 + 3.5, 8 * 1 + 3.5]  # index in the mirrored volume, stored order
    index = [n - 1 - i if a in mirrored else i for a, (i, n) in enumerate(zip(turned, target.shape))]
    point = torch.from_numpy(target.affine @ [*index, 1])[:3, None]
    moved = np.linalg.inv(target.affine[:3, :3]) @ bend.displacement_at(point).numpy()[:, 0] / 8
    sign = [-1 if a in mirrored else 1 for a in range(3)]
    assert told[1:4, 1, 1, 2].numpy() == pytest.approx([sign[i] * moved[i] for i in order], abs=1e-4)
    assert float(told[4, 1, 1, 2]) == pytest.approx(np.log(1.08), abs=1e-4)


def test_mirrored_averaging_tells_every_mirroring_its_own(untrained, monkeypatch):
    monkeypatch.setattr("mrisr.infer.denoise.outside_band", lambda answer, *how: answer)  # the local mean is the answer
    grid, bend = grid_of((32, 32, 32), (2.2, 2.2, 2.2)), Bend(0.002, 0.05)
    scan = bend.scan(grid).astype(np.float32) + 500
    plain, info = run(scan, grid, untrained, gradnl=bend)
    for channel, expected in ((1, 0.0), (4, np.log(1.05))):
        found, _ = run(scan, grid, answers(channel), gradnl=bend, ensemble=8)
        told = (found - plain) / info.intensity[0][1] / 0.05
        assert np.abs(told[8:-8, 8:-8, 8:-8] - expected).max() < 1e-3


def test_bad_corrections_are_refused_and_named(untrained, tmp_path):
    grid, bend = grid_of((20, 22, 20), (3.0, 3.0, 3.0)), Bend()
    scan = bend.scan(grid).astype(np.float32)
    ge, prose = tmp_path / "gw_coils.dat", tmp_path / "prose.grad"
    ge.write_text("SCALEX1 0.1\nSCALEX2 0.2\n")
    prose.write_text("no coefficients\n")
    good = np.ones(scan.shape, np.float32)
    zero, nan = good.copy(), good.copy()
    zero[3, 3, 3], nan[2, 2, 2] = 0, np.nan
    elsewhere = Volume(good + 0.1 * scan / scan.max(), np.diag([3.0, 3.0, 3.0, 1.0]))
    cases = [
        (dict(gradnl=ge), InputError, "looks like GE's"),
        (dict(gradnl=prose), InputError, "holds no coefficients"),
        (dict(gradnl=Bend(0.09)), InputError, "displaces by .* expected at most 50 mm"),
        (dict(gradnl="auto"), UsageError, "cannot be estimated"),
        (dict(gradnl=3), UsageError, "expected a path"),
        (dict(gradnl=bend, gradnl_done="twice"), UsageError, "gradnl_done"),
        (dict(gradnl=bend, consistency="on"), UsageError, "consistency: 'on' needs"),
        (dict(gradnl=elsewhere), InputError, "displacement field \\[X, Y, Z, 3\\]"),
        (dict(bias=zero), InputError, "1 voxels are zero or below"),
        (dict(bias=nan), InputError, "not finite"),
        (dict(bias=good[1:]), InputError, "its grid is"),
        (dict(bias=elsewhere), InputError, "voxels away from the scan"),
        (dict(bias=good[..., None]), InputError, "expected a bias field"),
        (dict(bias_out="kept"), UsageError, "needs a bias field"),
        (dict(bias=good, bias_out="both"), UsageError, "bias_out"),
    ]
    for options, error, text in cases:
        with pytest.raises(error, match=text):
            run(scan, grid, untrained, **options)
    siemens = tmp_path / "coil.grad"
    siemens.write_text(" 0.250 m = R0, lnorm = 4?\n  1 A( 3, 0)  -0.2  z\n")
    other = Volume(scan, grid.affine, meta={"Manufacturer": "GE MEDICAL SYSTEMS"})
    with pytest.raises(InputError, match="the scan is from .GE"):
        run(other, grid, untrained, gradnl=siemens)


class Folds(Bend):
    """Small waves, steep enough to fold over, and no polynomial."""

    degree = None

    def displacement_at(self, points):
        return torch.stack([6 * torch.sin(points[0] / 3), 0 * points[0], 0 * points[0]])

    def gradient_at(self, points):
        found = points.new_zeros(3, 3, points.shape[1])
        found[0, 0] = 2 * torch.cos(points[0] / 3)
        return found


def test_what_folds_over_is_said_once(untrained):
    grid = grid_of((40, 24, 20), (1.5, 3.0, 3.0))
    with pytest.warns(MrisrWarning, match="folds over") as caught:
        _, info = run(Bend().scan(grid).astype(np.float32), grid, untrained, gradnl=Folds())
    folding = [w for w in caught if "folds over" in str(w.message)]
    assert len(folding) == 1 and [str(folding[0].message)] == [w for w in info.warnings if "folds over" in w]


def test_the_memory_of_corrections_is_counted():
    shape = (320, 320, 320)
    plain, bent = Corrections(), Corrections(Nonlinearity(Bend(), "a bend"))
    assert plain.start_copies(shape) == 2 and 4 < bent.start_copies(shape) < 8
    assert bent.start_copies((40, 40, 40)) > bent.start_copies(shape)
    assert Corrections(field="auto").source_copies > Corrections(field=torch.ones(1)).source_copies > 0
    assert bent.points_bytes > 0 == plain.points_bytes
