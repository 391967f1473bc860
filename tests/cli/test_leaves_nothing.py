"""Nothing leaves the machine, and nothing is written beside the outputs and the cache: every command, the Python API
under `spawn`, and a program that had imported OpenVINO before.

Each runs alone (`tests/alone.py`): nothing can be sent, and HOME, TMPDIR and the working folder are looked at
afterwards.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

from mrisr.cli.main import COMMANDS

# As `python -m mrisr.cli.main`, but training measures its residual on few probes, which takes a minute otherwise.
QUICKLY = "import sys; from mrisr.train import teacher; teacher.PROBES = 12; from mrisr.cli.main import entry; entry()"
# As `python -m mrisr.cli.main serve`, told to stop a second after everything is up.
STOPPED = """
import os, signal, threading
from mrisr.cli import serve
wait = serve._until_stopped
def stopped():
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    wait()
serve._until_stopped = stopped
from mrisr.cli.main import entry
entry()
"""
HOW = {"train": ["-c", QUICKLY], "distill": ["-c", QUICKLY], "serve": ["-c", STOPPED]}
# command -> lines that run it; {scan}, {scans} (a folder), {bids} and {weights} are there, o is what it may write
LINES = {
    "upscale": ["-i {scan} -o o.nii.gz --preview o.png --info o.json --voxel-size 1.5 --engine openvino"],
    "bids": ["{bids} o participant --model {weights}"],
    "correct": ["-i {scan} -o o.nii.gz --bias auto"],
    "simulate": ["-i {scan} -o o.nii.gz --like 7T"],
    "demo": ["-o o --model {weights} --quiet"],
    "evaluate": ["{scan} -o o --model {weights} --cases iso2 --methods mrisr"],
    "pack": ["{scans} -o o.pack"],
    "train": ["--config tiny --steps 1 --data {scans} --out o"],
    "distill": ["--config distill-tiny --steps 1 --data {scans} --out o --teacher {weights}"],
    "export": ["-o o --model {weights} --format openvino"],
    "bench": ["--script ops -- --quick --families noise"],
    "doctor": [""],
    "serve": ["mrd --port 0 --model {weights}", "dicom --port 0 --model {weights} --folder o --send-to A@127.0.0.1:9"],
}


def test_every_command_is_watched():
    assert set(LINES) == {command.__name__.rsplit(".", 1)[-1] for command in COMMANDS}


IN_TURN = """
import os, sys
from mrisr.cli.main import main
from mrisr.train import teacher
teacher.PROBES = 12
for line in sys.argv[1:]:
    name = line.split()[0]
    os.mkdir(name)
    os.chdir(name)
    code = main(line.split())
    assert code == 0, f"{line}: ended with {code}"
    os.chdir("..")
"""
TOGETHER = ("bids", "correct", "simulate", "evaluate", "pack", "train", "distill", "bench", "doctor")
SLOW = dict.fromkeys(TOGETHER, pytest.mark.slow("alone in a process; in turn with the others it is in `make test`"))
SLOW["demo"] = pytest.mark.slow("the whole template")
SLOW["export"] = pytest.mark.slow("every graph is exported and compared")
ALL = [pytest.param(c, line, marks=SLOW.get(c, ())) for c, lines in LINES.items() for line in lines]
NEEDS = {"train": "accelerate", "distill": "accelerate", "demo": "nilearn"}


@pytest.fixture
def words(scan, weights, tmp_path):
    """words(line) -> those of a line of LINES, its inputs there."""
    scans, raw = tmp_path / "scans", tmp_path / "raw"
    scans.mkdir()
    for name in "ab":
        shutil.copy(scan, scans / f"{name}.nii.gz")
    (raw / "sub-01/anat").mkdir(parents=True)
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    shutil.copy(scan, raw / "sub-01/anat/sub-01_T1w.nii.gz")
    return lambda line: line.format(scan=scan, weights=weights, scans=scans, bids=raw).split()


@pytest.mark.parametrize(("command", "line"), ALL)
def test_command(command, line, alone, words):
    if command in NEEDS:
        pytest.importorskip(NEEDS[command], reason=f"needs {NEEDS[command]} for the command {command}")
    if command == "serve":
        needs = "pynetdicom" if "dicom" in line else "ismrmrd"
        pytest.importorskip(needs, reason=f"needs {needs} for the service")
    done = alone([sys.executable, *HOW.get(command, ["-m", "mrisr.cli.main"]), command, *words(line)])
    assert (command == "serve") == ("mrisr serve: stopped" in done.stderr)


def test_one_command_after_the_other(alone, words, tmp_path):
    here = [name for name in TOGETHER if name not in NEEDS or importlib.util.find_spec(NEEDS[name])]
    lines = [" ".join([name, *words(line)]) for name in here for line in LINES[name]]
    alone([sys.executable, "-c", IN_TURN, *lines], outputs=here)
    for name in here:
        made = os.listdir(tmp_path / "work" / name)
        assert all(file.split(".")[0] == "o" for file in made), f"{name} wrote {made}"


SCRIPT = """
import sys
print("the script runs")
if __name__ == "__main__":
    import multiprocessing
    multiprocessing.set_start_method("spawn")
    {first}
    import mrisr
    mrisr.upscale({scan!r}, voxel_size=1.5, engine="openvino")
    assert "openvino_telemetry.backend" not in sys.modules or {imported}
"""


@pytest.mark.parametrize(
    "first", ["", pytest.param("import openvino", marks=pytest.mark.slow("two more processes load PyTorch"))]
)
def test_a_script_where_processes_are_spawned(first, alone, scan, tmp_path):
    """Also where the script has imported OpenVINO itself, whose own event is not ours: it is let go to nowhere."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(first=first, scan=str(scan), imported=bool(first)))
    # OpenVINO's package does not send from a CI machine (it looks at this variable), whoever imports it.
    done = alone([sys.executable, str(script)], env={"CI": "true"} if first else None)
    assert done.stdout.splitlines() == ["the script runs"]


def test_the_stand_in_is_put_where_telemetry_was_found():
    """What a program's own import has brought in does not send when we convert."""
    code = """
import sys, types
fake = types.ModuleType("openvino_telemetry")
class Telemetry:
    sent = 0
    def __init__(self, *a, **k): pass
    def __getattr__(self, name):
        def call(*a, **k): Telemetry.sent += 1
        return call
    backend = types.SimpleNamespace(app_name="OpenVINO")
fake.Telemetry = Telemetry
fake.__path__ = []
for name in ("openvino_telemetry.backend", "openvino_telemetry.backend.backend_ga4"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["openvino_telemetry.backend"].backend_ga4 = sys.modules["openvino_telemetry.backend.backend_ga4"]
sys.modules["openvino_telemetry"] = fake
import openvino
assert Telemetry.sent > 0
before = Telemetry.sent
from mrisr.infer.engines import openvino as engine
from mrisr.nn.presets import build
engine.convert(build("student").eval())
assert Telemetry.sent == before, Telemetry.sent
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
