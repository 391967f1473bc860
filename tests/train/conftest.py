"""A folder of two small scans to train on."""

import nibabel as nib
import numpy as np
import pytest

from mrisr.data.synth import synthetic_volume
from mrisr.train import teacher


@pytest.fixture
def few_probes(monkeypatch):
    """What the residual is measured on need not be exact here, only quick."""
    monkeypatch.setattr(teacher, "PROBES", 12)


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for name, seed in (("anna", 1), ("bela", 2)):
        data = (synthetic_volume((60, 56, 64), seed=seed).data.numpy() * 500).astype(np.int16)
        nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{name}_t1w.nii.gz")
    return folder
