"""The promise about geometry, written once and held against every kind of file.

After a file has been read, resampled onto a planned grid and written:
  each of sform and qform keeps its code and, by itself, the centre of the field of view (1e-4 mm), its size
  (half an output voxel), its handedness and its axis codes; header fields that are still true stay; the data
  are float32, unscaled; and a picture that is a linear function of world position still is that function.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension
from nibabel.testing import data_path

from mrisr.errors import MrisrWarning
from mrisr.grid import Grid, plan, ratios
from mrisr.io import nifti
from mrisr.io.headers import affine_in_mm
from mrisr.ops.resample import interpolation_matrix
from mrisr.volume import Volume

SHAPE = (9, 11, 7)
STRAIGHT = np.array([[1.1, 0, 0, -40], [0, 0.9, 0, 30], [0, 0, 2.3, -20], [0, 0, 0, 1.0]])
LEFT_HANDED = np.diag([-1, 1, 1, 1.0]) @ STRAIGHT
PERMUTED = STRAIGHT[[2, 0, 1, 3]]
TURN = nib.eulerangles.euler2mat(0.3, -0.5, 0.2)
OBLIQUE = nib.affines.from_matvec(TURN, [5, -3, 80]) @ STRAIGHT
SHEARED = STRAIGHT @ np.array([[1, 0.2, 0, 0], [0, 1, -0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
TEMPLATE = OBLIQUE @ np.diag([1.05, 0.97, 1.02, 1])  # as if registered: not even the voxel sizes agree

FLOAT_TOLERANCE = 3e-4  # of values around 100, float32 voxels and float32 affines
TARGETS = {"factor 2": {"factor": 2}, "0.7 mm": {"voxel_size": 0.7}, "1.5 x": {"factor": (1.5, 1, 0.8)}}
KEPT = (
    *("descrip", "aux_file", "intent_code", "intent_name", "intent_p1", "xyzt_units", "dim_info", "toffset"),
    *("qform_code", "sform_code"),
)


@dataclass(frozen=True)
class Kind:
    """A NIfTI file whose voxels are a ramp over world coordinates."""

    sform: tuple[np.ndarray, int] | None = (STRAIGHT, 1)
    qform: tuple[np.ndarray, int] | None = (STRAIGHT, 1)
    dtype: str = "<f4"
    image: type = nib.Nifti1Image
    ending: str = ".nii"
    slope: tuple[float, float] = (1, 0)
    frames: int = 0
    warns: str = ""
    fields: dict = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        header = self.image.header_class(endianness=self.dtype[0] if self.dtype[0] in "<>" else "<")
        header.set_data_dtype(self.dtype)
        header.set_data_shape(SHAPE)
        header["pixdim"][1:4] = np.linalg.norm(STRAIGHT[:3, :3], axis=0)
        for place, setter in ((self.sform, header.set_sform), (self.qform, header.set_qform)):
            if place is not None:
                setter(*place)
        header.set_xyzt_units("mm", "sec")
        header["descrip"], header["aux_file"], header["intent_name"] = b"T1w of a ramp", b"aux", b"ramp"
        header["intent_code"], header["intent_p1"], header["dim_info"], header["toffset"] = 1001, 2.5, 57, 1.5
        header["slice_code"], header["slice_end"], header["slice_duration"] = 1, SHAPE[2] - 1, 0.1
        header["cal_min"], header["cal_max"] = 1, 200
        header.extensions.append(Nifti1Extension("comment", b"kept word for word"))
        for key, value in self.fields.items():
            header[key] = value
        values = ramp(SHAPE, affine_in_mm(header.get_best_affine(), header))
        if self.frames:
            values = np.stack([values + t for t in range(self.frames)], axis=-1)
            header.set_data_shape(values.shape)
            header["pixdim"][4] = 2.2
        stored = (values - self.slope[1]) / self.slope[0]
        stored = np.rint(stored) if np.dtype(self.dtype).kind in "iu" else stored
        path = folder / f"ramp{self.ending}"
        image = self.image(stored.astype(self.dtype), None, header)
        image.header.set_slope_inter(*self.slope)
        nib.save(image, path)
        return path

    @property
    def tolerance(self) -> float:
        """Rounding to integers, as an interpolating spline may amplify it; else float32."""
        return 3 * self.slope[0] if np.dtype(self.dtype).kind in "iu" else FLOAT_TOLERANCE


def ramp(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape[:3]), indexing="ij"), axis=-1)
    world = nib.affines.apply_affine(affine, index)
    return 120 + world @ np.array([1.0, -0.7, 0.4])


KINDS = {
    "float32": Kind(),
    "float64": Kind(dtype="<f8"),
    "big-endian float32": Kind(dtype=">f4"),
    "big-endian int16": Kind(dtype=">i2", slope=(0.01, 0)),
    "int16 with slope and intercept": Kind(dtype="<i2", slope=(0.01, 55)),
    "int16": Kind(dtype="<i2"),
    "uint8": Kind(dtype="u1"),
    "uint16": Kind(dtype="<u2"),
    "int32 with slope": Kind(dtype="<i4", slope=(1e-4, -3)),
    "gzipped": Kind(ending=".nii.gz"),
    "upper case": Kind(ending=".NII.GZ"),
    "qform only": Kind(sform=None),
    "sform only": Kind(qform=None),
    "neither": Kind(sform=None, qform=None),
    "codes 4 and 2": Kind(sform=(STRAIGHT, 4), qform=(STRAIGHT, 2)),
    "both and different": Kind(sform=(TEMPLATE, 4), qform=(OBLIQUE, 1), warns="sform and qform differ by"),
    "left-handed": Kind(sform=(LEFT_HANDED, 1), qform=(LEFT_HANDED, 1)),
    "left-handed qform only": Kind(sform=None, qform=(LEFT_HANDED, 1)),
    "oblique": Kind(sform=(OBLIQUE, 1), qform=(OBLIQUE, 1)),
    "oblique qform only": Kind(sform=None, qform=(OBLIQUE, 1)),
    "permuted axes": Kind(sform=(PERMUTED, 1), qform=(PERMUTED, 1)),
    "sheared": Kind(sform=(SHEARED, 2), qform=(STRAIGHT, 1), warns="sform and qform differ by"),
    "sheared sform only": Kind(sform=(SHEARED, 2), qform=None, warns="pixdim"),
    "half turn": Kind(qform=(np.diag([-1, -1, 1, 1.0]) @ STRAIGHT, 1), sform=None),
    "4D": Kind(frames=3),
    "4D with one frame": Kind(frames=1),
    "NIfTI-2": Kind(image=nib.Nifti2Image),
    "NIfTI-2 big-endian": Kind(image=nib.Nifti2Image, dtype=">i2"),
    "pair by header": Kind(image=nib.Nifti1Pair, ending=".hdr"),
    "pair by image": Kind(image=nib.Nifti1Pair, ending=".img"),
    "pair big-endian": Kind(image=nib.Nifti1Pair, ending=".hdr", dtype=">f4"),
    "pair gzipped": Kind(image=nib.Nifti1Pair, ending=".img.gz"),
    "NIfTI-2 pair": Kind(image=nib.Nifti2Pair, ending=".hdr"),
    "pixdim contradicts sform": Kind(sform=(TEMPLATE, 1), qform=None, warns="by pixdim and"),
    "micrometres": Kind(
        sform=(np.diag([1e3, 1e3, 1e3, 1]) @ STRAIGHT, 1),
        qform=None,
        fields={"xyzt_units": 3, "pixdim": [1, 1100, 900, 2300, 1, 1, 1, 1]},
    ),
    "qfac of zero": Kind(fields={"pixdim": [0, 1.1, 0.9, 2.3, 1, 1, 1, 1]}),
}


def resampled(volume: Volume, target: Grid) -> np.ndarray:
    matrices = [
        interpolation_matrix(n, m, r)
        for n, m, r in zip(volume.grid.shape, target.shape, ratios(volume.grid, target), strict=True)
    ]
    return np.einsum("ai,bj,ck,ijk...->abc...", *matrices, volume.data, optimize=True)


def upscale(path: Path, out: Path, spec: dict) -> tuple[nib.spatialimages.SpatialImage, ...]:
    """Read, resample, write; the images before and after."""
    volume = nifti.read(path)
    target = plan(volume.grid, **spec)
    nifti.write(volume.replace(resampled(volume, target), target.affine), out)
    return nib.load(path), nib.load(out)


def assert_same_place(before: tuple[np.ndarray, tuple], after: tuple[np.ndarray, tuple]) -> None:
    """The contract for one placement: (affine in mm, shape) before and after."""
    (old, n), (new, m) = [(affine, np.array(shape[:3])) for affine, shape in (before, after)]
    centres = [nib.affines.apply_affine(a, (count - 1) / 2) for a, count in ((old, n), (new, m))]
    assert np.abs(centres[0] - centres[1]).max() < 1e-4
    sizes = [nib.affines.voxel_sizes(a) for a in (old, new)]
    assert (np.abs(n * sizes[0] - m * sizes[1]) <= 0.501 * sizes[1]).all()
    assert np.sign(np.linalg.det(old)) == np.sign(np.linalg.det(new))
    assert nib.aff2axcodes(old) == nib.aff2axcodes(new)


def assert_nifti_contract(before: nib.Nifti1Image, after: nib.Nifti1Image) -> None:
    old, new = before.header, after.header
    for key in KEPT:
        assert old[key] == new[key], key
    assert np.array_equal(old["pixdim"][4:], new["pixdim"][4:])
    assert [e.get_content() for e in old.extensions] == [e.get_content() for e in new.extensions]
    assert new.get_data_dtype() == np.dtype("<f4")
    with after.file_map["image"].get_prepare_fileobj("rb") as stream:  # nibabel hides the scaling once loaded
        raw = type(new).from_fileobj(stream)
    assert (raw["scl_slope"], raw["scl_inter"]) == (1, 0)
    for reset in ("slice_start", "slice_end", "slice_code", "slice_duration", "cal_min", "cal_max"):
        assert new[reset] == 0, reset
    for code, place in (
        ("sform_code", lambda h: h.get_sform()),
        ("qform_code", lambda h: h.get_qform()),
        (None, lambda h: h.get_best_affine()),
    ):
        if code is None or old[code]:
            assert_same_place(*((affine_in_mm(place(h), h), h.get_data_shape()) for h in (old, new)))
    if not old["qform_code"]:
        assert np.allclose(new.get_zooms()[:3], nib.affines.voxel_sizes(after.affine), rtol=1e-5)


def assert_still_a_ramp(after: nib.spatialimages.SpatialImage, tolerance: float) -> None:
    """Frame t is the ramp plus t, at the places that the written file states."""
    expected = ramp(after.shape, affine_in_mm(after.affine, after.header))
    frames = after.get_fdata().reshape(*expected.shape, -1)
    assert np.abs(frames - expected[..., None] - np.arange(frames.shape[3])).max() < tolerance


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_nifti_keeps_its_place(kind, target, tmp_path):
    kind = KINDS[kind]
    path = kind.save(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before, after = upscale(path, tmp_path / "out.nii.gz", TARGETS[target])
    said = [str(w.message) for w in caught if issubclass(w.category, MrisrWarning)]
    assert len(said) == bool(kind.warns) and all(kind.warns in s and str(path) in s for s in said)
    assert_nifti_contract(before, after)
    assert_still_a_ramp(after, kind.tolerance)


MGH_AFFINES = {
    "straight": STRAIGHT,
    "left-handed": LEFT_HANDED,
    "permuted": PERMUTED,
    "oblique": OBLIQUE,
    "sheared": SHEARED,
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("affine", MGH_AFFINES)
@pytest.mark.parametrize("ending", [".mgz", ".mgh"])
def test_every_mgh_keeps_its_place(ending, affine, target, tmp_path):
    affine = MGH_AFFINES[affine]
    path = tmp_path / f"ramp{ending}"
    source = nib.MGHImage(np.stack([ramp(SHAPE, affine) + t for t in range(2)], -1).astype("f4"), affine)
    source.header["tr"], source.header["te"] = 2200, 30
    nib.save(source, path)
    before, after = upscale(path, tmp_path / "out.mgz", TARGETS[target])
    assert isinstance(after, nib.MGHImage) and after.get_data_dtype() == np.dtype(">f4")
    assert (after.header["tr"], after.header["te"]) == (2200, 30)
    assert_same_place((before.affine, before.shape), (after.affine, after.shape))
    assert_still_a_ramp(after, FLOAT_TOLERANCE)


def test_mgh_becomes_nifti_and_nifti_mgh(tmp_path):
    path = Kind(sform=(OBLIQUE, 1), qform=(OBLIQUE, 1), frames=2).save(tmp_path)
    _, mgh = upscale(path, tmp_path / "out.mgz", {"factor": 2})
    assert isinstance(mgh, nib.MGHImage) and mgh.header["tr"] == pytest.approx(2200)
    _, back = upscale(tmp_path / "out.mgz", tmp_path / "back.nii", {"factor": 0.5})
    assert isinstance(back, nib.Nifti1Image) and back.header["pixdim"][4] == pytest.approx(2200)
    assert back.header.get_xyzt_units() == ("mm", "msec")
    assert (back.header["sform_code"], back.header["qform_code"]) == (1, 1)
    assert np.allclose(back.header.get_qform(), OBLIQUE, atol=1e-4)
    for image in (mgh, back):
        assert_same_place((OBLIQUE, SHAPE), (image.affine, image.shape))
        assert_still_a_ramp(image, FLOAT_TOLERANCE)


NIBABEL_FILES = {  # name -> what its warnings say
    "example4d.nii.gz": "",
    "example_nifti2.nii.gz": "",
    "anatomical.nii": "",
    "functional.nii": "",
    "standard.nii.gz": "",
    "reoriented_anat_moved.nii": "",
    "test.mgz": "",
}


@pytest.mark.parametrize("name", NIBABEL_FILES)
def test_nibabels_own_files_keep_their_place(name, tmp_path):
    path = Path(data_path) / name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = nifti.read(path)
    said = " ".join(str(w.message) for w in caught if issubclass(w.category, MrisrWarning))
    assert NIBABEL_FILES[name] in said and bool(said) == bool(NIBABEL_FILES[name])
    target = plan(volume.grid, factor=1.5)
    shape = target.shape + volume.data.shape[3:]  # no need to resample: the ramps above do
    result = volume.replace(np.zeros(shape, np.float32), target.affine)
    out = tmp_path / ("out.mgz" if name.endswith(".mgz") else "out.nii")
    nifti.write(result, out)
    before, after = nib.load(path), nib.load(out)
    if name.endswith(".mgz"):
        assert_same_place((before.affine, before.shape), (after.affine, after.shape))
    else:
        assert_nifti_contract(before, after)
    assert np.array_equal(volume.data, before.get_fdata(dtype=np.float32))


@pytest.mark.filterwarnings("ignore::mrisr.errors.MrisrWarning")
def test_an_unchanged_grid_leaves_the_header_bit_for_bit(tmp_path):
    volume = nifti.read(Kind(sform=(TEMPLATE, 4), qform=(OBLIQUE, 1)).save(tmp_path))
    header = nifti.to_image(volume).header
    for key in ("pixdim", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z"):
        assert np.array_equal(header[key], volume.header[key]), key


def test_a_qform_that_would_be_sheared_is_dropped_with_a_warning(tmp_path):
    volume = nifti.read(Kind(sform=(OBLIQUE, 3), qform=(OBLIQUE, 1)).save(tmp_path))
    shear = np.eye(4)
    shear[0, 1] = 0.2
    with pytest.warns(MrisrWarning, match="qform written with code 0: the affine has shear"):
        image = nifti.to_image(volume.replace(volume.data, volume.affine @ shear))
    assert (image.header["sform_code"], image.header["qform_code"]) == (3, 0)
    assert np.allclose(image.affine, OBLIQUE @ shear, atol=1e-5)


def test_a_qform_that_is_no_rotation_is_reported_and_dropped(tmp_path):
    path = Kind(qform=None, fields={"qform_code": 1, "quatern_b": 0.9, "quatern_c": 0.9}).save(tmp_path)
    with pytest.warns(MrisrWarning, match="qform's quaternion is not a rotation; the sform is used"):
        volume = nifti.read(path)
    target = plan(volume.grid, factor=2)
    with pytest.warns(MrisrWarning, match="code 0: its quaternion is not a rotation"):
        image = nifti.to_image(volume.replace(resampled(volume, target), target.affine))
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 0)
    assert np.allclose(image.header.get_zooms(), target.voxel_size)


def test_the_warning_gives_the_distance_at_the_farthest_corner(tmp_path):
    moved = STRAIGHT.copy()
    moved[:3, 3] += [3, 4, 0]
    path = Kind(sform=(moved, 1), qform=(STRAIGHT, 1)).save(tmp_path)
    with pytest.warns(MrisrWarning, match=r"sform and qform differ by 5 mm at the farthest corner; sform is used"):
        volume = nifti.read(path)
    assert np.allclose(volume.affine, moved, atol=1e-5)


def test_a_sidecar_states_acquisition_facts(tmp_path):
    path = Kind(ending=".nii.gz").save(tmp_path)
    assert nifti.read(path).meta == {}
    (tmp_path / "ramp.json").write_text('{"SliceThickness": 3.0, "EchoTime": 0.1, "MRAcquisitionType": "2D"}')
    assert nifti.read(path).meta == {"SliceThickness": 3.0, "MRAcquisitionType": "2D"}
    (tmp_path / "ramp.json").write_text("{")
    with pytest.warns(MrisrWarning, match="ramp.json: the sidecar cannot be read"):
        assert nifti.read(path).meta == {}
    stated = {
        "SliceThickness": "3",
        "SpacingBetweenSlices": 3300.0,
        "ImageType": ["ORIGINAL", 1],
        "AcquisitionMatrix": [0, 256, 256, 0],
        "Odd": float("nan"),
    }
    (tmp_path / "ramp.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(stated).encode())
    with pytest.warns(MrisrWarning) as warned:
        assert nifti.read(path).meta == {"AcquisitionMatrix": [0, 256, 256, 0]}
    said = [str(w.message).partition("ramp.json: ")[2] for w in warned]
    assert said == [
        "SliceThickness: expected a number above 0 and at most 100, found '3'; it is not used",
        "SpacingBetweenSlices: expected a number above 0 and at most 100, found 3300.0; it is not used",
        "ImageType[1]: expected text, found 1; it is not used",
    ]
