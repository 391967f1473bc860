"""Two threads at once, and processes: the same result as alone, or at once a word of what to use instead."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

import mrisr
from mrisr.errors import BackendError
from mrisr.infer.engines import select

UPSCALE = """
import multiprocessing, sys
import numpy as np
import mrisr

def work(seed):
    rng = np.random.default_rng(seed)
    scan = np.zeros((20, 22, 18), np.float32)
    scan[3:-3, 3:-3, 3:-3] = 100 + rng.random((14, 16, 12), dtype=np.float32)
    return mrisr.upscale(scan, input_voxel_size=2.0, voxel_size=1.5, engine="{engine}", threads=2)

if __name__ == "__main__":
    before = work(0)
    with multiprocessing.get_context("{method}").Pool(1) as pool:
        found = pool.apply_async(work, (0,)).get(timeout=600)
    print(abs(found - before).max() <= 1e-5 * before.max())
"""


TILED = pytest.param({"engine": "openvino", "tile": 48}, marks=pytest.mark.slow("six jobs of several tiles"))


@pytest.mark.parametrize("how", [{"engine": "openvino"}, TILED, {"engine": "torch"}])
def test_two_threads_give_what_one_gives(how, head):
    scans = [head((36, 40, 34), seed=seed) for seed in range(2)]
    alone = [mrisr.upscale(s, input_voxel_size=1.6, voxel_size=1.0, threads=1, **how) for s in scans]
    found, failed = {}, []

    def work(index):
        try:
            for _ in range(2):
                found[index] = mrisr.upscale(scans[index], input_voxel_size=1.6, voxel_size=1.0, threads=1, **how)
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            failed.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    for index, expected in enumerate(alone):
        assert np.array_equal(found[index], expected)


def test_threads_leave_the_warnings_as_they_were(head, random_model):
    before = (warnings.showwarning, list(warnings.filters))
    model = random_model("local")

    def work():
        mrisr.upscale(head((20, 22, 18)), input_voxel_size=2.0, voxel_size=1.5, model=model, engine="torch", threads=1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (warnings.showwarning, list(warnings.filters)) == before


def run(method: str, engine: str, tmp_path) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(UPSCALE.format(method=method, engine=engine))
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=700)


TORCH = pytest.param("torch", marks=pytest.mark.slow("two more processes load PyTorch"))


@pytest.mark.parametrize("engine", ["openvino", TORCH])
def test_a_forked_child_of_a_process_that_has_used_it_says_what_to_use(engine, tmp_path):
    done = run("fork", engine, tmp_path)
    assert done.returncode != 0
    assert 'start processes with multiprocessing.get_context("spawn")' in done.stderr.splitlines()[-1]


@pytest.mark.slow("two processes load PyTorch and OpenVINO; what is spawned is in test_leaves_nothing.py too")
def test_a_spawned_child_gives_the_same(tmp_path):
    done = run("spawn", "openvino", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"


def test_a_process_that_was_forked_before_may_use_it(monkeypatch):
    monkeypatch.setattr(select, "_used_in", None)
    select.check_fork()
    monkeypatch.setattr(select, "_used_in", os.getpid())
    select.check_fork()
    monkeypatch.setattr(select, "_used_in", os.getppid())
    with pytest.raises(BackendError, match="forked from one that had used mrisr"):
        select.check_fork()
