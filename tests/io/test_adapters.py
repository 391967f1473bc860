"""Anything in, the same kind out, in the same place."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch

from mrisr.errors import GeometryError, InputError, MrisrWarning, UsageError
from mrisr.grid import plan
from mrisr.io.adapters import to_volume
from mrisr.volume import Volume

RAMP = np.arange(6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4)
FRAMES = np.stack([RAMP, RAMP + 1, -RAMP], axis=-1)
TURN = nib.eulerangles.euler2mat(0.3, -0.5, 0.2)
AFFINE = nib.affines.from_matvec(TURN @ np.diag([1.1, 0.9, -2.3]), [10, -20, 30])


def finer(volume: Volume) -> Volume:
    """Twice finer by repetition: enough to follow shape, values and place."""
    target = plan(volume.grid, factor=2)
    data = volume.data
    for axis in range(3):
        data = data.repeat(2, axis=axis)
    return volume.replace(data, target.affine)


@pytest.mark.parametrize("dtype", ["bool", "u1", ">i2", "f2", "f4", "f8"])
@pytest.mark.parametrize("data", [RAMP, FRAMES], ids=["3D", "4D"])
def test_arrays(data, dtype):
    given = (data % 2 if dtype == "bool" else data).astype(dtype)
    volume, restore = to_volume(given, affine=AFFINE)
    assert np.array_equal(volume.affine, AFFINE)
    back = restore(finer(volume))
    assert type(back) is np.ndarray and back.dtype == np.float32
    assert np.array_equal(back[::2, ::2, ::2], given.astype("f4"))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float64])
def test_tensors(dtype):
    given = (torch.from_numpy(FRAMES) / 128).to(dtype).requires_grad_(dtype.is_floating_point)
    if not dtype.is_floating_point:
        given = torch.from_numpy(FRAMES).clamp(0, 200).to(dtype)
        given[0, 0, 0] = 0
        given[1, 1, 1] = 1
    volume, restore = to_volume(given, input_voxel_size=(1, 2, 3))
    assert volume.voxel_size == (1, 2, 3)
    back = restore(finer(volume))
    assert back.dtype == torch.float32 and back.device == given.device
    assert torch.equal(back[::2, ::2, ::2], given.detach().float())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_return_to_their_device():
    volume, restore = to_volume(torch.from_numpy(RAMP).cuda(), input_voxel_size=1)
    assert restore(volume).device.type == "cuda"


def test_complex_tensors_are_refused_as_arrays_are():
    with pytest.raises(InputError, match=r"tensor \(6, 5, 4\): complex data"):
        to_volume(torch.from_numpy(RAMP).to(torch.complex64).conj(), input_voxel_size=1)


def test_an_array_without_a_place_is_taken_as_1_mm_with_a_warning():
    with pytest.warns(MrisrWarning, match="1 mm voxels assumed; state affine= or input_voxel_size="):
        volume, _ = to_volume(RAMP)
    assert np.array_equal(volume.affine, np.eye(4))


def test_affine_and_voxel_size_must_agree():
    volume, _ = to_volume(RAMP, AFFINE, (1.1, 0.9, 2.3))
    assert np.array_equal(volume.affine, AFFINE)
    with pytest.raises(UsageError, match="input_voxel_size: affine says 1.1 x 0.9 x 2.3 mm, found 1; leave one"):
        to_volume(RAMP, AFFINE, 1)
    with pytest.raises(UsageError, match="input_voxel_size: expected one positive number or three, found -1"):
        to_volume(RAMP, input_voxel_size=-1)
    with pytest.raises(
        GeometryError, match=r"array \(6, 5, 4\), affine: expected a 4 x 4 affine, found shape \(3, 3\)"
    ):
        to_volume(RAMP, np.eye(3))


def test_what_knows_its_place_is_not_contradicted():
    image = nib.Nifti1Image(RAMP, AFFINE)
    to_volume(image, AFFINE, (1.1, 0.9, 2.3))
    with pytest.raises(UsageError, match="affine: nibabel image has another affine of its own; leave it out"):
        to_volume(image, np.eye(4))
    with pytest.raises(UsageError, match="input_voxel_size: nibabel image says 1.1 x 0.9 x 2.3 mm, found 2"):
        to_volume(image, input_voxel_size=2)


@pytest.mark.parametrize("as_text", [True, False])
def test_paths_become_nibabel_images(as_text, tmp_path):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(RAMP, AFFINE), path)
    volume, restore = to_volume(str(path) if as_text else path)
    assert volume.name == str(path)
    back = restore(finer(volume))
    assert isinstance(back, nib.Nifti1Image) and back.get_data_dtype() == np.float32
    assert np.allclose(back.affine, plan(volume.grid, factor=2).affine, atol=1e-5)


@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage])
def test_nibabel_images_keep_their_format_and_are_not_changed(image):
    given = image(RAMP.astype("f4"), AFFINE)
    before = given.header.copy()
    volume, restore = to_volume(given)
    back = restore(finer(volume))
    assert type(back) is image and back.shape == (12, 10, 8)
    assert np.allclose(nib.affines.voxel_sizes(back.affine), [0.55, 0.45, 1.15])
    assert given.header == before and np.array_equal(given.get_fdata(), RAMP)


def test_other_nibabel_images_become_nifti():
    given = nib.Spm99AnalyzeImage(RAMP, np.diag([-1, 1, 2, 1]))
    volume, restore = to_volume(given)
    assert type(restore(volume)) is nib.Nifti1Image and volume.voxel_size == (1, 1, 2)


def test_volumes_pass_through():
    given = Volume(RAMP, AFFINE)
    volume, restore = to_volume(given)
    assert volume is given and restore(given) is given


@pytest.mark.parametrize(
    "given", [None, 3, [[1]], {"a": 1}, torch.nn.Linear(1, 1), object()], ids=lambda g: type(g).__name__
)
def test_anything_else_is_named(given):
    with pytest.raises(UsageError, match=f"volume: expected a path, .*found .*{type(given).__qualname__}"):
        to_volume(given)


class TestSimpleITK:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")

    def image(self, data: np.ndarray):
        image = self.sitk.GetImageFromArray(np.ascontiguousarray(data.T), isVector=False)
        n = data.ndim
        direction = np.eye(n)
        direction[:3, :3] = np.diag([-1, -1, 1]) @ TURN @ np.diag([1, 1, -1])
        image.SetSpacing([1.1, 0.9, 2.3, 2.0][:n])
        image.SetOrigin([-10.0, 20.0, 30.0, 5.0][:n])
        image.SetDirection(direction.ravel())
        image.SetMetaData("Modality", "MR")
        return image

    @pytest.mark.parametrize("data", [RAMP, FRAMES], ids=["3D", "4D"])
    def test_place_values_and_metadata(self, data):
        given = self.image(data)
        volume, restore = to_volume(given)
        assert np.array_equal(volume.data, data) and np.allclose(volume.affine, AFFINE)
        back = restore(volume)
        for ask in ("GetSize", "GetMetaDataKeys"):
            assert getattr(back, ask)() == getattr(given, ask)()
        for ask in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(getattr(back, ask)(), getattr(given, ask)())
        assert np.array_equal(self.sitk.GetArrayFromImage(back), data.T)

    def test_a_point_of_the_body_stays_where_itk_says(self):
        given = self.image(RAMP)
        volume, restore = to_volume(given)
        back = restore(finer(volume))
        middle = [(n - 1) / 2 for n in RAMP.shape]
        where = given.TransformContinuousIndexToPhysicalPoint(middle)
        assert np.allclose(back.TransformPhysicalPointToContinuousIndex(where), [2 * m + 0.5 for m in middle])

    def test_nifti_written_by_simpleitk_is_read_in_the_same_place(self, tmp_path):
        given = self.image(RAMP)
        self.sitk.WriteImage(given, str(tmp_path / "a.nii.gz"))
        by_file, by_image = to_volume(tmp_path / "a.nii.gz")[0], to_volume(given)[0]
        assert np.allclose(by_file.affine, by_image.affine, atol=1e-5)
        assert np.array_equal(by_file.data, by_image.data)

    def test_colour_and_2d_are_refused(self):
        with pytest.raises(InputError, match="SimpleITK image: vector of .*; expected one number per voxel"):
            to_volume(self.sitk.Image([4, 4, 4], self.sitk.sitkVectorUInt8, 3))
        with pytest.raises(InputError, match="SimpleITK image: expected a 3D or 4D volume, found 2D"):
            to_volume(self.sitk.Image([4, 4], self.sitk.sitkUInt8))


@pytest.mark.parametrize("data", [RAMP, FRAMES], ids=["3D", "4D"])
def test_torchio_images_by_their_shape(data, monkeypatch):
    """TorchIO is known by module name and by `.data` [C, X, Y, Z] and `.affine`; it need not be installed."""

    class ScalarImage:
        __module__ = "torchio.data.image"

        def __init__(self, tensor, affine):
            self.data, self.affine = tensor, affine

    monkeypatch.setitem(sys.modules, "torchio", types.ModuleType("torchio"))
    channels = torch.from_numpy(np.moveaxis(np.atleast_1d(data.reshape(6, 5, 4, -1)), -1, 0).copy())
    volume, restore = to_volume(ScalarImage(channels, AFFINE))
    assert np.array_equal(volume.data, data) and np.array_equal(volume.affine, AFFINE)
    back = restore(volume)
    assert isinstance(back, ScalarImage) and torch.equal(back.data, channels)


def test_importing_the_adapters_loads_no_other_library():
    code = (
        "import sys, mrisr.io.adapters as a, numpy as np;"
        "a.to_volume(np.arange(8.).reshape(2, 2, 2), np.eye(4));"
        "print([m for m in ('torch', 'nibabel', 'SimpleITK', 'pydicom') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_no_warning_where_nothing_was_assumed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_volume(nib.Nifti1Image(RAMP, AFFINE))
        to_volume(RAMP, input_voxel_size=1)
