"""Starting takes little processor time (`import mrisr` 0.3 s, `mrisr --help` 0.5 s), and neither loads torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "nibabel", "openvino", "scipy", "rich", "PIL")


BARE = 0.05  # seconds of processor time in which a machine of today starts Python alone; a slower one gets more


def seconds(*command: str) -> float:
    """Processor time of a Python process: what else the machine does is not in it."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


def best(*command: str) -> float:
    return min(seconds(*command) for _ in range(5))


@pytest.fixture(scope="module")
def bare() -> float:
    return best("-c", "pass")


def test_import_takes_at_most_300_ms(bare):
    # What Python itself takes is not ours.
    assert best("-c", "import mrisr") - bare <= 0.3 * max(1, bare / BARE)


def test_help_takes_at_most_500_ms(bare):
    assert best("-m", "mrisr.cli.main", "--help") <= 0.5 * max(1, bare / BARE)


@pytest.mark.parametrize("what", ["import mrisr", "import mrisr.cli.main as m; m.build_parser()"])
def test_nothing_heavy_is_loaded(what):
    code = f"{what}; import sys; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_command_reads_without_torch_and_pydicom(tmp_path):
    """nibabel imports pydicom where it is installed; the commands do without, and pass its NIfTI extension on."""
    code = f"""
import gc, sys
from mrisr.cli.loading import load
load("mrisr.batch.scans")
assert gc.isenabled()
print(sorted({{"torch", "pydicom", "scipy.ndimage", "openvino"}} & set(sys.modules)))
import nibabel, numpy
from mrisr.io import nifti
image = nibabel.Nifti1Image(numpy.random.default_rng(0).random((4, 4, 4), numpy.float32), numpy.eye(4))
image.header.extensions.append(nibabel.nifti1.Nifti1Extension(2, b"\\x08\\x00\\x05\\x00CS\\x02\\x00LO"))
image.to_filename({str(tmp_path / "in.nii")!r})
nifti.write(nifti.read({str(tmp_path / "in.nii")!r}), {str(tmp_path / "out.nii")!r})
print([(e.get_code(), e.get_content()[:10]) for e in nibabel.load({str(tmp_path / "out.nii")!r}).header.extensions])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", repr([(2, b"\x08\x00\x05\x00CS\x02\x00LO")])]


def test_only_the_program_loads_the_library_of_torch_ahead():
    """And PyTorch is imported as ever afterwards; in another's process nothing begins."""
    code = """
import sys, threading
from mrisr.cli import loading
if sys.argv[1] == "program":
    loading.own_process()
loading.torch_ahead()
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join()
print("libtorch_cpu" in open("/proc/self/maps").read(), "torch" in sys.modules)
import torch
print(float(torch.ones(3).sum()))
loading.load("mrisr.errors")
import gc
print(gc.get_freeze_count() > 100_000, gc.isenabled())
"""
    if sys.platform != "linux":
        pytest.skip("elsewhere importing torch loads its library")
    for whose, loaded in (("program", "True"), ("another's", "False")):
        done = subprocess.run([sys.executable, "-c", code, whose], check=True, capture_output=True, text=True)
        assert done.stdout.splitlines() == [f"{loaded} False", "3.0", f"{loaded} True"]
