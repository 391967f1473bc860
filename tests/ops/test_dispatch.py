"""The chooser: who decides, and what it says when the one that was asked for cannot run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mrisr import native, ops
from mrisr.errors import BackendError, UsageError
from mrisr.ops import _dispatch
from mrisr.ops._dispatch import Backend, choose
from mrisr.ops.group_norm import group_norm

X = torch.zeros(1, 4, 2, 2, 2)


@pytest.fixture
def family(monkeypatch):
    """fast (float32 only), broken (never), reference; not registered for good."""
    monkeypatch.setattr(_dispatch, "FAMILIES", dict(_dispatch.FAMILIES))

    def no_float64(x):
        return "it takes float32; x is torch.float64" if x.dtype == torch.float64 else None

    return _dispatch.Family(
        "doubling",
        (
            Backend("cuda", lambda x: 2 * x, lambda: "no CUDA device", lambda x: None),
            Backend("native", lambda x: 2 * x, lambda: None, no_float64),
            Backend("reference", lambda x: x + x, lambda: None, lambda x: None),
        ),
    )


def test_the_first_that_supports_the_call(family, monkeypatch):
    monkeypatch.delenv("MRISR_BACKEND", raising=False)
    assert choose(family, None, X).name == "native"
    assert choose(family, None, X.double()).name == "reference"


def test_argument_beats_context_beats_environment(family, monkeypatch):
    monkeypatch.setenv("MRISR_BACKEND", "reference")
    assert choose(family, None, X).name == "reference"
    with ops.use_backend("native"):
        assert choose(family, None, X).name == "native"
        assert choose(family, "reference", X).name == "reference"
        with ops.use_backend("doubling=reference"):
            assert choose(family, None, X).name == "reference"
    assert choose(family, None, X).name == "reference"


def test_environment_by_family(family, monkeypatch):
    monkeypatch.setenv("MRISR_BACKEND", "doubling=reference, other=native")
    assert choose(family, None, X).name == "reference"


def test_asked_for_and_impossible_names_reason_and_alternatives(family, monkeypatch):
    with pytest.raises(BackendError) as error:
        choose(family, "cuda", X)
    assert str(error.value) == (
        "doubling: backend 'cuda' (asked for by the backend argument) cannot run: no CUDA device. "
        "Backends that can: native, reference"
    )
    monkeypatch.setenv("MRISR_BACKEND", "native")
    with pytest.raises(
        BackendError, match=r"asked for by MRISR_BACKEND\) cannot run: it takes float32; x is torch.float64"
    ):
        choose(family, None, X.double())
    with ops.use_backend("triton"), pytest.raises(BackendError, match="it has only cuda, native, reference"):
        choose(family, None, X)


def test_unknown_names_are_refused(monkeypatch):
    with (
        pytest.raises(UsageError, match="use_backend: unknown backend 'fast'; expected one of native, cuda"),
        ops.use_backend("fast"),
    ):
        pass
    monkeypatch.setenv("MRISR_BACKEND", "nativ")
    with pytest.raises(UsageError, match="MRISR_BACKEND: unknown backend 'nativ'"):
        group_norm(X, 2)


def test_a_real_operator_refuses_to_fall_back():
    with pytest.raises(BackendError, match="group_norm: backend 'native' .*bfloat16; x is torch.float64"):
        group_norm(X.double(), 2, backend="native")


def test_table_has_a_reason_for_every_no():
    rows = ops.backend_table()
    assert {family for family, _, _ in rows} >= {"axis_apply", "blend", "gather", "group_norm", "noise"}
    assert {(family, name) for family, name, _ in rows} >= {(f, n) for f, _, _ in rows for n in _dispatch.NAMES}
    assert all(why is None or (isinstance(why, str) and why) for _, _, why in rows)
    assert all(why is None for _, backend, why in rows if backend == "reference")
    if not torch.cuda.is_available():
        assert all(why for _, backend, why in rows if backend == "cuda")


def test_asking_imports_nothing_heavy():
    code = (
        "import sys, mrisr.ops, mrisr.native; mrisr.native.describe(); assert 'torch' not in sys.modules;"
        "mrisr.ops.backend_table(); assert 'triton' not in sys.modules, 'triton was imported by a question'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_native_describes_itself():
    facts = native.describe()
    assert facts["native"] == (native.reason() is None)
    assert facts["cuda"] or facts["cuda_reason"]
