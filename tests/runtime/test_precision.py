"""libmrisr in bfloat16: the same choice as Python, close to float32, one line where it cannot be had."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from libmrisr import PRECISION, RUN, Engine, Failed

import mrisr
from mrisr.environment import bfloat16_absence

pytestmark = pytest.mark.filterwarnings("ignore::mrisr.errors.MrisrWarning")
LACKING = bfloat16_absence(torch.device("cpu"))


@pytest.fixture
def python(loaded, scan, affine, monkeypatch):
    """(picture, info) of the same job with precision="auto"."""
    monkeypatch.delenv("MRISR_PRECISION")
    how = dict(affine=affine, model=loaded, engine="openvino", threads=1, return_info=True)
    return mrisr.upscale(scan.astype(np.float32), **how)


def test_auto_chooses_as_python_does(library, model, scan, affine, python):
    expected, info = python
    found = library.upscale(model, scan, affine, precision=PRECISION["auto"])
    chosen = found.geometry.precision
    assert chosen == PRECISION[info.engine.precision]
    size = expected.max() - expected.min()
    assert np.abs(found.data - expected).max() <= (1e-5 if chosen == PRECISION["float32"] else 2e-3) * size


@pytest.mark.skipif(LACKING is not None, reason=f"bfloat16 cannot run here: {LACKING}")
def test_bfloat16_is_close_to_float32(library, model, scan, affine):
    pictures = {}
    for name in ("float32", "bfloat16"):
        job = library.plan(model, scan.shape, affine, precision=PRECISION[name])
        why = library.geometry(job).precision_why.decode()
        pictures[name] = library.run(job, scan).data
        library.c.mrisr_job_close(job)
    assert "which this processor has" in why and "differs from float32 by" in why
    apart = np.abs(pictures["bfloat16"] - pictures["float32"]).max() / pictures["float32"].max()
    assert 0 < apart <= 5e-3


@pytest.mark.skipif(LACKING is None, reason="this processor has bfloat16")
def test_bfloat16_where_it_cannot_be_had(library, model, scan, affine):
    with pytest.raises(Failed, match="precision: bfloat16 was asked for, but .*; use float32, or auto"):
        library.plan(model, scan.shape, affine, precision=PRECISION["bfloat16"])


@pytest.mark.parametrize("value", [-1, 3])
def test_no_such_precision(library, model, scan, affine, value):
    with pytest.raises(Failed, match=f"precision: expected 0 to 2, found {value}"):
        library.plan(model, scan.shape, affine, precision=value)


def test_a_callers_engine_has_a_precision_of_its_own(library, model, scan, affine):
    run = RUN(lambda user, tile: 0)
    engine = library.made(Engine, run=run)
    with pytest.raises(Failed, match="precision: is that of the built-in engine"):
        library.plan(model, scan.shape, affine, engine=engine, precision=PRECISION["bfloat16"])
    job = library.plan(model, scan.shape, affine, engine=engine, precision=PRECISION["auto"])
    geometry = library.geometry(job)
    assert geometry.precision == PRECISION["auto"] and b"caller's engine" in geometry.precision_why
    library.c.mrisr_job_close(job)
    assert ctypes.sizeof(Engine) == engine.struct_size
