"""libmrisr as `make runtime` has built and installed it; without that these tests are skipped."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.alone import alone, no_network  # noqa: F401 - fixtures

sys.path.insert(0, str(Path(__file__).parent))
from libmrisr import LIBRARY, Library  # noqa: E402 - beside, not in a package


def pytest_collection_modifyitems(items):
    if LIBRARY is None:
        skip = pytest.mark.skip(reason="libmrisr is built and tested by `make runtime` (MRISR_LIBRARY is not set)")
        for item in items:
            if Path(__file__).parent in item.path.parents and item.path.name != "test_kit.py":
                item.add_marker(skip)


@pytest.fixture(scope="session")
def library():
    return Library(Path(LIBRARY))


@pytest.fixture(scope="session")
def loaded():
    from mrisr.weights import registry

    return registry.load(registry.locate("base"))  # by its path: the one network that a bundle has


@pytest.fixture(scope="session")
def folder(loaded, made_once):
    """A bundle of the shipped weights."""
    from mrisr.export.build import export_bundle

    return made_once("bundle", lambda folder: export_bundle(loaded, folder))


@pytest.fixture(scope="session")
def model(library, folder):
    model = library.open(folder)
    yield model
    library.c.mrisr_close(model)


@pytest.fixture(scope="session")
def scan(head):
    return head((34, 40, 30)).round()


@pytest.fixture(scope="session")
def affine():
    """Oblique, 1.4 mm."""
    turn = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = 1.4 * turn, (3, -5, 7)
    return affine
