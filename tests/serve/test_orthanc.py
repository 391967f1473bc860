"""With other people's programs: dcmtk's storescu sends, Orthanc archives and routes. Everything on the loopback."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the DICOM node needs pynetdicom (extra dicom)")
import dicom_peer as peers  # noqa: E402
from stand_in import wait_until  # noqa: E402

ORTHANC = shutil.which("Orthanc") or next((p for p in ("/usr/sbin/Orthanc",) if Path(p).exists()), None)
pytestmark = [
    pytest.mark.slow("four programs start, two of them load PyTorch"),
    pytest.mark.skipif(
        not (ORTHANC and shutil.which("storescu")), reason="needs Orthanc and storescu (Debian: orthanc, dcmtk)"
    ),
]
ROUTE = """
function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'MR' and not string.find(tags['SeriesDescription'] or '', 'RESEARCH SYNTH') then
    RestApiPost('/modalities/mrisr/store', seriesId)
  end
end
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Orthanc:
    """A running Orthanc. node: port that its modality `mrisr` is at; route: whether it sends every series there."""

    def __init__(self, folder: Path, node: int, route: bool = False) -> None:
        self.http, self.dicom = free_port(), free_port()
        folder.mkdir()
        (folder / "route.lua").write_text(ROUTE)
        config = {
            "StorageDirectory": str(folder),
            "IndexDirectory": str(folder),
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": "ORTHANC",
            "StableAge": 1,
            "AuthenticationEnabled": False,
            "RemoteAccessAllowed": False,
            "DicomModalities": {"mrisr": ["MRISR", "127.0.0.1", node]},
            "LuaScripts": [str(folder / "route.lua")] if route else [],
            "Plugins": [],
        }
        (folder / "orthanc.json").write_text(json.dumps(config))
        log = open(folder / "log", "wb")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], stdout=log, stderr=log)
        log.close()
        self.folder = folder

    def get(self, path: str):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=60) as answer:
            return json.load(answer)

    def instances(self) -> set[str]:
        """SOP instance UIDs that it holds; empty before it answers."""
        try:
            return {i["MainDicomTags"]["SOPInstanceUID"] for i in self.get("/instances?expand")}
        except OSError:
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            return set()

    def up(self) -> bool:
        try:
            return bool(self.get("/system"))
        except OSError:
            return False


@pytest.fixture
def programs():
    """A list of processes that are ended after the test."""
    running: list[subprocess.Popen] = []
    yield running
    for process in running:
        process.kill()
        process.wait()


def node(port: int, folder: Path, orthanc: int, weights: Path) -> subprocess.Popen:
    """`mrisr serve dicom`, once it listens."""
    words = ["serve", "dicom", "--port", port, "--folder", folder, "--send-to", f"ORTHANC@127.0.0.1:{orthanc}"]
    words += ["--model", weights, "--voxel-size", 1, "--quiet-seconds", 2, "--reserve", "1MB"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mrisr.cli.main", *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if "dicom as MRISR" in line:
            return process
    raise AssertionError("".join(said))


def written(datasets, folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{k:03}.dcm" for k in range(len(datasets))]
    for path, ds in zip(paths, datasets):
        ds.save_as(path, enforce_file_format=True)
    return paths


def storescu(port: int, called: str, files) -> subprocess.Popen:
    return subprocess.Popen(
        ["storescu", "-aet", "SCANNER", "-aec", called, "127.0.0.1", str(port), *map(str, files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def received(folder: Path) -> int:
    return len(list(folder.glob("series/*/in/*.dcm")))


def derived(orthanc: Orthanc, sent) -> list[dict]:
    """The series of Orthanc that are not the one that was sent."""
    return [
        s for s in orthanc.get("/series?expand") if s["MainDicomTags"]["SeriesInstanceUID"] != sent[0].SeriesInstanceUID
    ]


def test_killed_in_the_middle_and_nothing_is_lost(tmp_path, programs, weights):
    """storescu -> node -> Orthanc; the node is killed (SIGKILL) in reception, and once more before it has begun."""
    port, folder, sent = free_port(), tmp_path / "spool", peers.series(60)
    orthanc, files = Orthanc(tmp_path / "orthanc", port), written(sent, tmp_path / "files")
    programs.append(orthanc.process)
    first = node(port, folder, orthanc.dicom, weights)
    programs.append(first)
    sender = storescu(port, "MRISR", files)
    programs.append(sender)
    wait_until(lambda: received(folder) >= 5)
    first.send_signal(signal.SIGKILL)
    assert sender.wait(60) != 0 and 5 <= received(folder) < 60, "the node was killed too late to show anything"

    second = node(port, folder, orthanc.dicom, weights)
    programs.append(second)
    again = storescu(port, "MRISR", files)
    programs.append(again)
    assert again.wait(60) == 0, again.stdout.read()
    wait_until(lambda: list(folder.glob("series/*/released")))
    second.send_signal(signal.SIGKILL)
    second.wait(60)
    assert received(folder) == 60

    wait_until(orthanc.up)
    third = node(port, folder, orthanc.dicom, weights)
    programs.append(third)
    wait_until(lambda: not list(folder.glob("series/*")))
    (series,) = derived(orthanc, sent)
    assert len(series["Instances"]) == 119 or len(series["Instances"]) == 120  # 60 slices of 2 mm at 1 mm
    tags = orthanc.get(f"/instances/{series['Instances'][0]}/simplified-tags")
    assert tags["PatientName"] == "DOE^JANE" and tags["StudyInstanceUID"] == sent[0].StudyInstanceUID
    assert tags["ImageType"].startswith("DERIVED\\SECONDARY") and "RESEARCH SYNTH" in tags["SeriesDescription"]
    third.send_signal(signal.SIGTERM)
    assert third.wait(60) == 0
    assert "DOE" not in third.stderr.read()


def test_orthanc_routes_and_gets_one_more_series(tmp_path, programs, weights):
    """A series that Orthanc gets goes to the node by Lua, comes back derived, and is not routed once more."""
    port, folder, sent = free_port(), tmp_path / "spool", peers.series(8)
    orthanc, files = Orthanc(tmp_path / "orthanc", port, route=True), written(sent, tmp_path / "files")
    programs.append(orthanc.process)
    programs.append(node(port, folder, orthanc.dicom, weights))
    wait_until(orthanc.up)
    sender = storescu(orthanc.dicom, "ORTHANC", files)
    assert sender.wait(60) == 0, sender.stdout.read()
    before = {ds.SOPInstanceUID for ds in sent}
    wait_until(lambda: len(orthanc.instances()) >= 8 + 15 and not list(folder.glob("series/*")))
    time.sleep(3)  # Orthanc finds the derived series stable after 1 s, and must not send it on
    assert not list(folder.glob("series/*")) and not list(folder.glob("failed/*"))
    assert before < orthanc.instances() and len(derived(orthanc, sent)) == 1
