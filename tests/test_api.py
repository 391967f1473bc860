"""`mrisr.upscale` gives back what it was given; `import mrisr` costs nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings

import nibabel
import numpy as np
import pytest
import torch

import mrisr
from mrisr.errors import MrisrWarning, UsageError


@pytest.fixture(scope="module")
def kinds(head, tmp_path_factory):
    scan = head((20, 24, 22))
    affine = np.diag([1.0, 1.0, 1.2, 1.0])
    image = nibabel.Nifti1Image(scan, affine)
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nibabel.save(image, path)
    return {
        "path": (path, nibabel.Nifti1Image, {}),
        "text": (str(path), nibabel.Nifti1Image, {}),
        "image": (image, nibabel.Nifti1Image, {}),
        "array": (scan, np.ndarray, {"affine": affine}),
        "sizes": (scan, np.ndarray, {"input_voxel_size": (1, 1, 1.2)}),
        "tensor": (torch.from_numpy(scan), torch.Tensor, {"affine": affine}),
        "volume": (mrisr.Volume(scan, affine), mrisr.Volume, {}),
    }


def voxels(result):
    if isinstance(result, nibabel.Nifti1Image):
        return result.get_fdata(dtype=np.float32)
    return np.asarray(result.data if isinstance(result, mrisr.Volume) else result)


@pytest.mark.parametrize("kind", ["path", "text", "image", "array", "sizes", "tensor", "volume"])
def test_the_kind_that_came_in_comes_out(kinds, random_model, kind):
    source, expected, place = kinds[kind]
    model = random_model("local")
    result = mrisr.upscale(source, model=model, engine="torch", threads=1, **place)
    array, where, placed = kinds["array"]
    reference, info = mrisr.upscale(array, model=model, engine="torch", threads=1, return_info=True, **placed)
    assert isinstance(result, expected)
    assert np.abs(voxels(result) - reference).max() < 1e-5 * reference.max()
    affine = getattr(result, "affine", None)
    if affine is not None:
        assert np.allclose(affine, info.target.affine, atol=1e-5)
    assert info.target.voxel_size == pytest.approx((0.7, 0.7, 0.7))


def test_a_scan_at_or_below_the_default_voxel_keeps_its_grid_and_says_so(kinds, random_model):
    how = dict(model=random_model("local"), engine="torch", threads=1, return_info=True)
    with pytest.warns(MrisrWarning, match="0.6 x 0.7 x 0.5 mm is 0.7 mm or finer .* the scan keeps its grid"):
        result, info = mrisr.upscale(kinds["array"][0], input_voxel_size=(0.6, 0.7, 0.5), **how)
    assert result.shape == kinds["array"][0].shape and info.target == info.input
    with warnings.catch_warnings():
        warnings.simplefilter("error", MrisrWarning)
        _, info = mrisr.upscale(kinds["array"][0], input_voxel_size=(0.6, 0.8, 0.5), **how)
    assert info.target.voxel_size == pytest.approx((0.6, 0.7, 0.5))


def test_an_array_without_a_place_is_1_mm_and_says_so(kinds, random_model):
    with pytest.warns(MrisrWarning, match="1 mm"):
        _, info = mrisr.upscale(kinds["array"][0], model=random_model("local"), engine="torch", return_info=True)
    assert info.input.voxel_size == (1.0, 1.0, 1.0)
    assert any("1 mm" in text for text in info.warnings)


def test_the_signature_is_the_promised_one():
    promised = (
        "volume voxel_size factor affine input_voxel_size series group reference register force device model adapt "
        "keep_adapted mode steps samples seed ensemble denoise psf gradnl gradnl_done slice_axis bias bias_out "
        "consistency mask nonnegative ends memory tile engine threads precision progress return_info"
    )
    parameters = inspect.signature(mrisr.upscale).parameters
    assert " ".join(parameters) == promised
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name != "volume")


def test_voxel_size_and_factor_contradict(kinds, random_model):
    array, _, place = kinds["array"]
    with pytest.raises(UsageError, match="not both"):
        mrisr.upscale(array, voxel_size=0.5, factor=2, model=random_model("local"), **place)


def test_mode_follows_steps_and_samples():
    from mrisr.api import choose_mode

    assert choose_mode(None, 1, 1) == "mean" and choose_mode("sample", 1, 1) == "sample"
    assert choose_mode(None, 2, 1) == choose_mode(None, 1, 2) == "sample"
    with pytest.raises(UsageError, match='found steps=4 and samples=1; .*mode="sample"'):
        choose_mode("mean", 4, 1)


def test_importing_is_cheap_and_lazy():
    heavy = {"torch", "openvino", "nibabel", "numpy", "scipy"}
    code = f"import sys, mrisr; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"  # how long it takes: test_startup.py


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nothing"):
        mrisr.nothing  # noqa: B018
    assert {"upscale", "load_model", "Volume", "__version__"} <= set(dir(mrisr))
