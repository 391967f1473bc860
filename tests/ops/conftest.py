"""Fixtures of the operator tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def nan_filled_empty():
    """Fresh memory holds NaN, so an element that an operator forgets to write is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
