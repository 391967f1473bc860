"""One exported bundle for all tests that read one, and copies of it to damage."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """(folder, lines said) of the shipped weights as a bundle with every precision and an OpenVINO graph."""
    pytest.importorskip("onnxscript", reason="exporting needs onnxscript (extra: export)")
    from mrisr.bundle import PRECISIONS
    from mrisr.export.build import export_bundle
    from mrisr.weights import registry

    folder, lines = tmp_path_factory.mktemp("export") / "base", []
    export_bundle(registry.load("base"), folder, form="openvino", precisions=PRECISIONS, say=lines.append)
    return folder, lines


@pytest.fixture
def copy(exported, tmp_path):
    """The bundle again, to be damaged."""
    return shutil.copytree(exported[0], tmp_path / "copy")
