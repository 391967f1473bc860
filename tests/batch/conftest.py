"""Untrained weights and folders of small scans."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Path of untrained `tiny` weights: plain interpolation, in milliseconds."""
    from mrisr.nn.presets import build
    from mrisr.train.checkpoint import export_weights

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    meta = {"format": 1, "preset": "tiny", "sigma_data": 0.05, "trained_range": {}}
    export_weights(path, build("tiny").state_dict(), meta)
    return path


@pytest.fixture
def make_scans(head):
    """make(folder, *names): a head of 16 x 18 x 14 voxels of 2 mm at each name; subfolders are made."""

    def make(folder, *names):
        for seed, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = head((16, 18, 14), seed=seed).astype(np.int16 if not name.endswith("mgz") else np.float32)
            kind = nib.MGHImage if name.endswith("mgz") else nib.Nifti1Pair if ".hdr" in name else nib.Nifti1Image
            nib.save(kind(data, np.diag([-2.0, 2, 2, 1])), path)
        return folder

    return make
