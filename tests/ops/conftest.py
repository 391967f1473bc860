"""Fixtures of the operator tests."""

from __future__ import annotations

import pytest
import torch

from tests.ops import parity


@pytest.fixture
def nan_filled_empty():
    """Fresh memory holds NaN, so an element that an operator forgets to write is seen."""
    with parity.nan_filled_empty():
        assert torch.empty(3).isnan().all()
        yield
