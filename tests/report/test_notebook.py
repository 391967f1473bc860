"""`mrisr.view` and `info.show`: by ipyniivue in a notebook, by matplotlib elsewhere, and where there is neither."""

from __future__ import annotations

import gzip
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

import mrisr
from mrisr.errors import GeometryError, UsageError
from mrisr.report import notebook


@pytest.fixture
def in_notebook(monkeypatch):
    """As in a kernel; what it displays is collected."""
    shown = []
    shell = SimpleNamespace(
        get_ipython=lambda: SimpleNamespace(kernel=1), display=SimpleNamespace(display=shown.append)
    )
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", shell.display)
    return shown


@pytest.fixture
def info(random_model, twin):
    return mrisr.upscale(twin[0], factor=1.5, model=random_model("local"), threads=1, return_info=True)[1]


def drawn(figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_by_matplotlib(twin, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    figure = mrisr.view(*twin)
    assert len(figure.axes) == 9 and figure.axes[0].get_ylabel() == "before (cubic)"
    picture = drawn(figure)
    assert (picture < 100).mean() > 0.2 and picture.std() > 50
    source, result = twin
    nib.save(nib.Nifti1Image(source.data, source.affine), tmp_path / "a.nii")
    image = nib.Nifti1Image(result.data, result.affine)
    same = drawn(mrisr.view(str(tmp_path / "a.nii"), image))  # paths and images alike
    assert np.array_equal(same, picture)


def test_arrays_lie_over_the_same_field_of_view(twin):
    torch = pytest.importorskip("torch")
    source, result = twin
    shown = notebook._pair(source.data, result.data, source.affine, None)
    expected = notebook._pair(*twin, None, None)
    assert np.allclose(shown.affine, expected.affine) and np.array_equal(shown.before, expected.before)
    assert np.array_equal(notebook._pair(source, torch.as_tensor(result.data), None, None).after, expected.after)


def test_by_ipyniivue(twin, request):
    pytest.importorskip("ipyniivue", reason="ipyniivue is not installed")
    request.getfixturevalue("in_notebook")  # after it: the package wants the true IPython
    widget = mrisr.view(*twin)
    assert [v.name for v in widget.volumes] == ["before.nii.gz", "after.nii.gz"]
    assert [(v.cal_min, v.cal_max) for v in widget.volumes] == [(0, 255)] * 2


def test_ipyniivue_gets_both_volumes(twin, in_notebook, monkeypatch):
    """Whatever version is installed, or none."""

    class Stand:
        def __init__(self, **options):
            assert options["is_radiological_convention"]

        def load_volumes(self, volumes):
            self.volumes = volumes

    monkeypatch.setitem(sys.modules, "ipyniivue", SimpleNamespace(NiiVue=Stand))
    before, after = mrisr.view(*twin).volumes
    images = [nib.Nifti1Image.from_bytes(gzip.decompress(v["data"])) for v in (before, after)]
    shown = notebook._pair(*twin, None, None)
    assert all(i.shape == shown.after.shape and np.allclose(i.affine, shown.affine) for i in images)


@pytest.mark.parametrize("kernel", [False, True])
def test_with_neither_one_line_says_so(twin, monkeypatch, kernel, request):
    if kernel:
        request.getfixturevalue("in_notebook")
    for name in ("ipyniivue", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"^view: needs ipyniivue .* or matplotlib, .*pip install") as caught:
        mrisr.view(*twin)
    assert "\n" not in str(caught.value)


def test_the_account(info, twin, in_notebook):
    info.warnings = ["<b>odd</b>"]
    account = info.show()
    text, table = repr(account), account._repr_html_()
    for word in ("24 × 28 × 22", "stored axis 3", "cycles/mm", "random local", "Research software"):
        assert word in text and word in table
    assert "warning: <b>odd</b>" in text and "&lt;b&gt;odd&lt;/b&gt;" in table and "<b>odd" not in table
    with pytest.raises(UsageError, match="give before and after"):
        info.show(twin[0])


def test_the_account_and_the_pictures(info, twin, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert len(info.show(*twin).axes) == 9
    assert "acquisition" in capsys.readouterr().out


def test_two_scans_that_are_no_pair(twin):
    turned = twin[1].replace(twin[1].data, twin[1].affine[:, [1, 0, 2, 3]])
    with pytest.raises(GeometryError, match="parallel"):
        mrisr.view(twin[0], turned)
