"""One exported bundle for all tests that read one, and copies of it to damage."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="session")
def exported(made_once):
    """(folder, lines said) of the shipped weights as a bundle with every precision and an OpenVINO graph."""
    pytest.importorskip("onnxscript", reason="exporting needs onnxscript (extra: export)")
    from mrisr.bundle import PRECISIONS
    from mrisr.export.build import export_bundle
    from mrisr.weights import registry

    def export(folder):
        folder.mkdir()
        lines = []
        export_bundle(registry.load("base"), folder / "base", form="openvino", precisions=PRECISIONS, say=lines.append)
        (folder / "said").write_text("\n".join(lines))

    folder = made_once("export", export)
    return folder / "base", (folder / "said").read_text().splitlines()


@pytest.fixture
def copy(exported, tmp_path):
    """The bundle again, to be damaged."""
    return shutil.copytree(exported[0], tmp_path / "copy")
