"""A pack trains and distils where there is nothing but numpy, torch, safetensors and accelerate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrisr.data.pack import write_pack
from mrisr.data.sources import find_scans, load_volumes

# What such a machine has of the libraries that mrisr may use: everything else is hidden.
HIDDEN = {
    "nibabel", "scipy", "openvino", "rich", "PIL", "tensorboard", "matplotlib", "nilearn", "SimpleITK", "pydicom",
    "onnx", "onnxruntime", "onnxscript", "monai", "sklearn", "pandas", "pytest",
}  # fmt: skip
BARE = """
import importlib.machinery as machinery, sys
real = machinery.PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else real(name, path, target)
machinery.PathFinder.find_spec = classmethod(find_spec)
from mrisr.train import distill, loop, teacher
teacher.PROBES = 8
from mrisr.cli.main import main
for words in WORDS:
    code = main(words)
    if code:
        sys.exit(code)
print(sorted(HIDDEN & {name.partition(".")[0] for name in sys.modules}))
"""


def bare(words: list[list[str]]) -> None:
    """Run the commands one after the other in a process of such a machine."""
    run = subprocess.run(
        [sys.executable, "-c", f"HIDDEN, WORDS = {HIDDEN}, {words}\n{BARE}"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.splitlines()[-1] == "[]"


def test_a_training_is_planned_from_a_pack(scans, tmp_path):
    write_pack(tmp_path / "scans.pack", load_volumes(find_scans(scans)), {"": "CC0"})
    words = ["train", "--config", "tiny", "--data", str(tmp_path / "scans.pack"), "--out", str(tmp_path / "t")]
    bare([[*words, "--dry-run"]])


@pytest.mark.slow("a training and a distillation; what they import, and a plan, are in `make test`")
def test_a_pack_is_all_that_training_needs(scans, tmp_path):
    write_pack(tmp_path / "scans.pack", load_volumes(find_scans(scans)), {"": "CC0"})
    small = {"preset": "tiny", "steps": 2, "batch": 2, "patch": 16, "synthetic": 0, "warmup": 1, "validate_every": 2,
             "precision": "fp32"}  # fmt: skip
    files = {}
    for name, more in (("train", {}), ("distill", {"counts": [2, 1], "serve": [1, 2], "mean_fraction": 0.5})):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps({**small, **more}))
    data = ["--data", str(tmp_path / "scans.pack"), "--hold-out", "bela", "--threads", "1"]
    bare(
        [
            ["train", "--config", str(files["train"]), *data, "--out", str(tmp_path / "t")],
            ["distill", "--config", str(files["distill"]), "--teacher", str(tmp_path / "t"), *data]
            + ["--out", str(tmp_path / "s")],
        ]
    )
    entry = json.loads((tmp_path / "s" / "log.jsonl").read_text().splitlines()[-1])
    assert entry["steps2/gain"] is not None and entry["average"] in ("long", "short") and entry["data_share"] > 0
