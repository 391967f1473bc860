"""Packs: what comes out is what went in, to below its noise; a damaged one is named."""

import numpy as np
import pytest
import torch

from mrisr.data.pack import describe, read_pack, step_of, write_pack
from mrisr.data.sources import find_scans, load_volumes
from mrisr.data.synth import synthetic_volume
from mrisr.data.volumes import TrainingVolume
from mrisr.errors import InputError, MrisrWarning, OutputError, TrainingError, UsageError
from mrisr.physics.intensity import estimate_noise


@pytest.fixture(scope="module")
def volumes():
    head = synthetic_volume((40, 36, 44), seed=1)
    noisy = head.data + 0.03 * torch.randn(head.data.shape, generator=torch.Generator().manual_seed(0))
    flat = TrainingVolume.from_array(
        np.random.default_rng(0).random((30, 30, 12)), (0.7, 0.7, 3.0), "bela_t2w.nii.gz[0]"
    )
    return [TrainingVolume.from_array(noisy.numpy(), (1.0, 1.0, 1.0), "anna_t1w.nii.gz[0]"), flat]


def test_a_pack_gives_back_what_it_was_given(volumes, tmp_path):
    path = tmp_path / "scans.pack"
    size = write_pack(path, volumes, {"": "CC0", "bela": "CC-BY"})
    assert path.stat().st_size == size < sum(2 * v.data.numel() + 6 * len(v.centres) for v in volumes)
    for before, after in zip(volumes, read_pack(path)):
        assert (before.name, before.voxel_size, before.fine_axes) == (after.name, after.voxel_size, after.fine_axes)
        assert torch.equal(before.centres, after.centres) and after.data.dtype == torch.float32
        worst = float((before.data - after.data).abs().max())
        assert worst <= 0.5001 * step_of(before)
    assert step_of(volumes[0]) == pytest.approx(estimate_noise(volumes[0].data) / 8)
    assert [entry["licence"] for entry in describe(path)] == ["CC0", "CC-BY"]
    assert [v.name for v in load_volumes([path])] == [v.name for v in volumes]


def test_scans_are_found_below_the_folder_too(tmp_path):
    """As `mrisr evaluate` finds them: any depth, any case of the ending, files only, in the order of their paths."""
    for name in ("b/anat/x.nii.gz", "a.NII", "b/a.mgz", "notes.txt", "c/.keep"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.nii").mkdir()
    assert [str(p.relative_to(tmp_path)) for p in find_scans(tmp_path)] == ["a.NII", "b/a.mgz", "b/anat/x.nii.gz"]
    with pytest.raises(TrainingError, match="no scan found"):
        find_scans(tmp_path / "c")


def test_what_a_pack_cannot_be(volumes, tmp_path):
    path = tmp_path / "scans.pack"
    with pytest.raises(UsageError, match="ends in .pack"):
        write_pack(tmp_path / "scans.npz", volumes, {})
    with pytest.raises(UsageError, match="'carla'"):
        write_pack(path, volumes, {"carla": "CC0"})
    write_pack(path, volumes, {})
    assert describe(path)[0]["licence"] == "not stated"
    with pytest.raises(OutputError, match="exists already"):
        write_pack(path, volumes, {})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no archive", whole[:3000] + b"\0" * 200 + whole[3200:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="pack"):
            read_pack(path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "other.npz").rename(path)
    with pytest.raises(InputError, match="not a pack"):
        read_pack(path)


def test_broken_scans_are_counted(tmp_path):
    import nibabel as nib

    for name in ("a", "b", "c"):
        data = np.random.default_rng(0).random((12, 12, 12), np.float32)
        nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / f"{name}.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(b"broken")
    with pytest.warns(MrisrWarning) as warned:
        volumes = load_volumes(sorted(tmp_path.iterdir()))
    assert [v.name[0] for v in volumes] == ["a", "c"]
    assert str(warned[-1].message) == "1 of 3 scans were left out: b.nii.gz"
