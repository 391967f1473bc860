"""The networks of one name: which one a job is for, and that this one runs."""

import shutil
import warnings

import numpy as np
import pytest

import mrisr
from mrisr.errors import ModelError, MrisrWarning, UsageError
from mrisr.grid import Grid
from mrisr.infer.corrections import Corrections
from mrisr.infer.facts import Geometry, Options
from mrisr.infer.networks import network_for
from mrisr.physics.psf import AxisPSF
from mrisr.weights import registry
from mrisr.weights.publish import publish

CUT, SLICE = "kspace", "gaussian"
SHIPPED = registry.FOLDER


def geometry(kinds, widths, target=(1.0, 1.0, 1.0)) -> Geometry:
    grids = [Grid((8, 8, 8), np.diag([*v, 1.0])) for v in (widths, target)]
    psf = tuple(AxisPSF(kind, float(width)) for kind, width in zip(kinds, widths))
    return Geometry(*grids, 1, psf, "stated", True, (0, 1, 2))


@pytest.mark.parametrize(
    "network, kinds, widths",
    [
        ("3d", (CUT, CUT, CUT), (2, 2, 2)),
        ("3d", (CUT, CUT, CUT), (1, 1, 2)),  # slices of a 3D acquisition
        ("2d", (CUT, CUT, SLICE), (1, 1, 4)),
        ("2d", ("supergaussian", CUT, CUT), (5, 1.3, 1.3)),
        ("general", (CUT, CUT, CUT), (1, 1, 1)),  # nothing finer is asked for
        ("general", (CUT, CUT, CUT), (5, 5, 5)),  # more than was learnt
        ("general", (CUT, CUT, SLICE), (1, 1, 9)),
        ("general", (CUT, CUT, SLICE), (2.5, 1, 4)),
        ("general", (CUT, CUT, SLICE), (1, 1, 1.2)),
        ("general", (CUT, SLICE, SLICE), (1, 3, 3)),
        ("general", (SLICE, SLICE, SLICE), (2, 2, 2)),
        ("general", (CUT, CUT, "unknown"), (1, 1, 4)),
        ("general", ("unknown",) * 3, (2, 2, 2)),
    ],
)
def test_the_acquisition_decides(network, kinds, widths):
    assert network_for(geometry(kinds, widths), Corrections(), Options()) == network


def test_what_the_special_ones_have_not_learnt_the_general_one_does():
    scan = geometry((CUT, CUT, CUT), (2, 2, 2))
    assert network_for(scan, Corrections(), Options(mode="sample", denoise=0.1)) == "general"
    assert network_for(scan, Corrections(field="auto"), Options()) == "general"
    assert network_for(scan, Corrections(), Options(ensemble=8, tile="exact", consistency="on")) == "3d"
    assert network_for(scan, Corrections(), Options(denoise=0.1)) == "3d"  # the scan is filtered


@pytest.fixture
def family(tmp_path, monkeypatch):
    """Shipped weights of three networks: each adds another constant, so that a result says whose it is."""
    from mrisr.nn.presets import build
    from mrisr.train.checkpoint import export_weights

    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr(registry, "FOLDER", shipped)
    for name, value in (("base", 0.0), ("base-2d", 1.0), ("base-3d", 2.0)):
        net = build("tiny")
        net.exit.bias.data.fill_(value)
        meta = {"format": 1, "preset": "tiny", "sigma_data": 0.1, "denoise": True, "name": name}
        export_weights(tmp_path / "one.safetensors", net.state_dict(), meta)
        publish(tmp_path / "one.safetensors", name, folder=shipped)
    return shipped


@pytest.fixture(scope="module")
def scan(head):
    return head((20, 24, 22))


def upscaled(scan, model, size, **how):
    how = dict(factor=None, voxel_size=1.0, engine="torch", threads=1, return_info=True) | how
    return mrisr.upscale(scan, input_voxel_size=size, model=model, **how)


@pytest.mark.parametrize("size, network, psf", [((2, 2, 2), "3d", CUT), ((1, 1, 4), "2d", (CUT, CUT, SLICE))])
def test_the_network_of_the_acquisition_runs_by_name_and_as_a_model(family, scan, size, network, psf):
    by_name, info = upscaled(scan, "base", size, psf=psf)
    assert (info.model, info.network) == ("base", network)
    assert info.weights == registry.load("base").sha256 == registry.identify("base").sha256
    loaded = mrisr.load_model("base")
    given, other = upscaled(scan, loaded, size, psf=psf)
    assert other.network == network and given.tobytes() == by_name.tobytes()
    own, of_file = upscaled(scan, family / f"base-{network}.safetensors", size, psf=psf)
    assert of_file.network == "general" and own.tobytes() == by_name.tobytes()
    general, of_general = upscaled(scan, family / "base.safetensors", size, psf=psf)
    assert of_general.network == "general" and general.tobytes() != by_name.tobytes()
    with warnings.catch_warnings():  # of a scan that small
        warnings.filterwarnings("ignore", "denoise: too little foreground")
        assert upscaled(scan, "base", size, psf=psf, denoise=1.0)[1].network == network


def test_one_hash_stands_for_all_networks(family):
    before, card = registry.load("base"), registry.identify("base")
    assert before.networks == tuple(card.networks) == ("2d", "3d") and before.network == "general"
    special = registry.network_of(before, "2d")
    assert (special.name, special.network, special.sha256) == ("base", "2d", before.sha256)
    assert registry.fresh("base", "2d").sha256 == before.sha256 and registry.fresh("base", "2d").network == "2d"
    assert registry.load(family / "base.safetensors").networks == ()
    shutil.copy(family / "base-2d.safetensors", family / "base-3d.safetensors")
    assert registry.load("base").sha256 != before.sha256
    (family / "base-2d.safetensors").unlink()
    (family / "base-3d.safetensors").unlink()
    alone = registry.load("base")
    assert alone.networks == () and alone.sha256 == registry.load(family / "base.safetensors").sha256
    assert registry.network_of(alone, "2d") is alone


def test_a_damaged_network_is_named(family, scan):
    (family / "base-3d.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"base-3d\.safetensors: not a readable safetensors file"):
        upscaled(scan, "base", (2, 2, 2), psf=CUT)
    upscaled(scan, "base", (1, 1, 4), psf=(CUT, CUT, SLICE))  # who does not need it is not kept from working


def test_networks_of_all_kinds_stay_loaded_by_turns(family, scan):
    model = mrisr.load_model("base")
    nets = [registry.network_of(model, n).denoiser.net for n in ("2d", "3d", "2d", "3d")]
    assert nets[0] is nets[2] and nets[1] is nets[3] and mrisr.load_model("base").denoiser is model.denoiser


@pytest.mark.parametrize("size, network", [((3.2,) * 3, "3d"), ((0.8, 0.8, 6.4), "2d"), ((1.6, 1.6, 4.8), "2d")])
def test_headers_in_float32_are_no_other_scans(size, network):
    widths = tuple(float(np.float32(v)) for v in size)
    kinds = (CUT, CUT, CUT if network == "3d" else SLICE)
    assert network_for(geometry(kinds, widths, (0.8,) * 3), Corrections(), Options()) == network


def test_an_axis_that_becomes_coarser_is_the_general_ones():
    assert network_for(geometry((CUT,) * 3, (2.0, 2.0, 0.5)), Corrections(), Options()) == "general"


@pytest.mark.parametrize("what", ["denoiser", "meta"])
def test_what_a_caller_has_put_in_its_place_runs(family, scan, what):
    from copy import deepcopy
    from dataclasses import replace

    model = mrisr.load_model("base")
    own = replace(model, **{what: deepcopy(getattr(model, what))})
    assert upscaled(scan, own, (2, 2, 2), psf=CUT)[1].network == "general"
    assert upscaled(scan, model, (2, 2, 2), psf=CUT)[1].network == "3d"


def test_a_file_that_has_gone_or_is_of_another_preset_is_named(family, scan):
    model = mrisr.load_model("base")
    (family / "base-2d.safetensors").unlink()
    with pytest.raises(ModelError, match=r"base-2d\.safetensors: is missing; install mrisr again"):
        upscaled(scan, model, (1, 1, 4), psf=(CUT, CUT, SLICE))
    meta, tensors = registry.read(SHIPPED / "teacher-small.safetensors")
    (family / "base-3d.safetensors").write_bytes(registry.as_bytes(tensors, meta))
    with pytest.raises(
        ModelError, match=r"base-3d\.safetensors: holds preset 'teacher-small', and base is 'tiny'; install"
    ):
        upscaled(scan, model, (2, 2, 2), psf=CUT)


def test_an_installation_without_one_of_them_is_no_installation(family, monkeypatch):
    monkeypatch.setattr(registry, "EXPECTED", {family / "base.safetensors": ("2d", "3d")})
    assert mrisr.load_model("base").networks == ("2d", "3d")
    (family / "base-2d.safetensors").unlink()
    for found in (mrisr.load_model, registry.identify, registry.fresh):
        with pytest.raises(ModelError, match=r"base-2d\.safetensors: is missing; install mrisr again"):
            found("base")


def test_shipped_ones_say_what_they_have_not_learnt(scan):
    how = dict(factor=2, input_voxel_size=(1.0, 1.0, 1.0), engine="torch", threads=1, return_info=True)
    for name in ("base-2d", "base-3d"):
        with pytest.raises(UsageError, match=f'mode: {name} has learnt "mean" alone'):
            mrisr.upscale(scan, model=name, mode="sample", **how)
    how |= dict(factor=None, voxel_size=1.0, input_voxel_size=(1.0, 1.0, 4.0), psf=(CUT, CUT, SLICE))
    with pytest.warns(MrisrWarning, match=r"axis 2: 4 mm acquired to 1 mm .* trained on 1x to 1x \(slice\)"):
        mrisr.upscale(scan, model="base-3d", **how)
    with pytest.warns(MrisrWarning, match=r"axis 0: 3 mm acquired to 1 mm .* trained on 1x to 2x \(isotropic\)"):
        mrisr.upscale(scan, model="base-2d", **(how | dict(input_voxel_size=(3.0, 3.0, 3.0), psf=CUT)))
