"""For the command line: a small scan, untrained weights, and a call that returns what a shell would see."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest

from mrisr.cli.main import main
from mrisr.volume import Volume
from tests.alone import alone, no_network  # noqa: F401 - fixtures
from tests.stacks import series


@dataclass(frozen=True)
class Ending:
    """How a command ended: exit code, stdout, stderr, and the lines of stderr that are errors."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("mrisr: error:")]

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("mrisr: warning:")]


@pytest.fixture
def mrisr_command(capfd):
    """call(*words) -> Ending; runs in this process."""

    def call(*words) -> Ending:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Ending(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def scan(tmp_path_factory, head):
    """Path of a NIfTI head of 24 x 26 x 22 voxels of 2 mm, int16, with a moved origin."""
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (20, -30, -10)
    nib.save(nib.Nifti1Image(head((24, 26, 22)).astype(np.int16), affine), path)
    return path


@pytest.fixture
def study(tmp_path, head):
    """A folder with two series of one study: 5 (the head) and 6 (its mirror image)."""
    folder, voxels = tmp_path / "study", head((24, 26, 12)).clip(0, 4000)
    affine = np.diag([-2.0, -2.0, 4.0, 1.0])
    for number, data in ((5, voxels), (6, voxels[::-1])):
        series(Volume(data, affine), folder, number, SeriesDescription=f"T{number}w")
    return folder
