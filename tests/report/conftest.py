"""Reports of small heads, and their pages opened in a browser."""

from __future__ import annotations

import numpy as np
import pytest

from mrisr.volume import Volume


@pytest.fixture(scope="session")
def twin(head):
    """(source, result): a head at 2.8 mm, and its original at 1.4 mm in place of a network's answer."""
    fine = head((48, 56, 44), noise=2.0)
    half = fine.reshape(24, 2, 28, 2, 22, 2).mean(axis=(1, 3, 5))
    near, far = np.diag([-1.4, 1.4, 1.4, 1.0]), np.diag([-2.8, 2.8, 2.8, 1.0])
    far[:3, 3] = (-0.7, 0.7, 0.7)
    return Volume(half, far), Volume(fine, near)


@pytest.fixture
def record():
    """make(**changes) -> a sidecar such as `mrisr.batch.provenance` writes, with changes under its own key."""

    def make(**changes):
        band = {"Profile": "kspace", "AcquiredMM": 2.8, "MeasuredToCyclesPerMM": 0.5 / 2.8}
        own = {
            "Version": "0",
            "Date": "2026-01-01T00:00:00Z",
            "Input": {"Name": "scan.nii.gz", "SHA256": "0" * 64},
            "WeightsSHA256": "1" * 64,
            "Options": {"steps": 1, "voxel_size": None, "psf": "auto"},
            "Model": "base",
            "Output": {"Bytes": 0, "DataType": "float32", "Shape": [48, 56, 44], "Frames": 1},
            "Bands": [{"Axis": axis, **band, "SynthesisedToCyclesPerMM": 0.5 / 1.4} for axis in range(3)],
            "BandsFrom": "assumed from the voxel size",
            "Mode": "mean",
            "Engine": {"Name": "torch", "Device": "cpu", "Precision": "float32"},
            "Tiles": "whole",
            "Seam": "one piece",
            "SeamError": None,
            "Consistency": [{"Applied": False, "Why": "not stated", "Chi2Before": None, "Chi2": None}],
            "Warnings": [],
        }
        return {"Description": "x", "Mrisr": own | changes}

    return make


@pytest.fixture
def open_page(browser):
    """open(path) -> a page that has loaded; the test fails by whatever the page complained of, or asked the net for."""
    said: list[str] = []
    contexts = []

    def note(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            said.append(f"request: {request.url}")

    def open_(path, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "offline": True} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda m: said.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
        page.on("request", note)
        page.goto(path.as_uri(), wait_until="commit")
        page.wait_for_load_state("domcontentloaded")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not said, "\n".join(said)
