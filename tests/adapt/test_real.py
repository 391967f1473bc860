"""What learning is worth on a head that nobody trained on."""

from __future__ import annotations

import numpy as np
import pytest

import mrisr
from mrisr.adapt import seconds
from mrisr.evaluate import metrics
from mrisr.evaluate.cases import CASES, make_trial, subject_of
from mrisr.io import nifti
from mrisr.volume import Volume
from tests.real_data import SCANS, needs_scans

PERSON = "t1w_0p9mm_b"


@needs_scans
@pytest.mark.slow("a hundred steps of the shipped network, in float32: minutes")
def test_a_held_out_head_gains_in_truth_what_its_planes_promise(monkeypatch):
    monkeypatch.setattr(seconds, "STEPS", 100)
    head = nifti.read(SCANS / f"{PERSON}.nii.gz")
    trial = make_trial(subject_of(PERSON, head.data, head.grid, 112), CASES["thick4"])
    scan = Volume(trial.scan, trial.coarse.affine, name="scan")
    how = dict(voxel_size=trial.fine.voxel_size, model="base", return_info=True)
    base, _ = mrisr.upscale(scan, **how)
    adapted, info = mrisr.upscale(scan, adapt=3600, **how)
    high = metrics.data_range(trial.reference)
    before, after = (metrics.psnr(trial.reference, v.data, trial.mask, high) for v in (base, adapted))
    assert info.adapt.used and info.adapt.gain_db > 0.05 and info.adapt.in_time
    assert after > before + 0.03 and np.isfinite(adapted.data).all()
