"""The page to try it on: what it takes and refuses, one scan at a time, nothing but its own files, nothing left."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest

for library in ("starlette", "uvicorn"):
    pytest.importorskip(library, reason=f"the web page needs {library} (extra web)")

from mrisr.serve.site import Settings  # noqa: E402
from mrisr.serve.web import Server  # noqa: E402


@pytest.fixture(scope="module")
def upscale(random_model):
    import mrisr

    model = random_model("local")

    def work(volume, progress, **options):
        return mrisr.upscale(volume, factor=1.5, model=model, threads=1, progress=progress, return_info=True)

    return work


@pytest.fixture
def serve(upscale, tmp_path, monkeypatch):
    """start(upscale=, **settings) -> a running server; its private folder lies in tmp_path."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    running = []

    def start(work=upscale, **settings) -> Server:
        running.append(Server(("127.0.0.1", 0), work, Settings(**settings)))
        return running[-1]

    yield start
    for server in running:
        server.stop()
    assert not [p for p in os.listdir(tmp_path) if p.startswith("mrisr-web")]


@pytest.fixture(scope="module")
def scan(head) -> bytes:
    image = nib.Nifti1Image(head((20, 22, 18)).astype(np.int16), np.diag([-2.0, 2, 2, 1]))
    return gzip.compress(image.to_bytes())


def ask(server, method, path, body=None, **headers) -> tuple[int, dict | bytes, dict]:
    """(status, JSON or bytes, headers) of one request, its path just as it is."""
    link = http.client.HTTPConnection(*server.address, timeout=60)
    try:
        link.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = link.getresponse()
        data = answer.read()
        kind = answer.headers.get("content-type", "")
        return answer.status, json.loads(data) if "json" in kind else data, dict(answer.headers)
    finally:
        link.close()


def upload(server, data, name="scan.nii.gz"):
    return ask(server, "POST", "/scans", data, Content_Type="application/octet-stream", X_File_Name=quote(name))


def ended(server, key, seconds=60.0) -> dict:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        _, held, _ = ask(server, "GET", f"/scans/{key}")
        if held["state"] in ("done", "failed"):
            return held
        time.sleep(0.05)
    raise AssertionError(f"not ended: {held}")


class Gate:
    """An `upscale` that waits to be let through."""

    def __init__(self, work) -> None:
        self.work, self.open, self.inside, self.most = work, threading.Event(), 0, 0

    def __call__(self, volume, progress, **options):
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            while not self.open.wait(0.02):
                progress("network", 0.5)
            return self.work(volume, progress)
        finally:
            self.inside -= 1


def test_a_scan_goes_in_and_its_result_and_page_come_out(serve, scan, tmp_path):
    server = serve()
    status, page, headers = ask(server, "GET", "/")
    assert (
        status == 200 and b"not a medical device" in page and "default-src 'none'" in headers["content-security-policy"]
    )
    status, held, _ = upload(server, scan, "my <b>scan.nii.gz")
    assert status == 202 and held["name"] == "my <b>scan.nii.gz" and len(held["id"]) >= 20
    assert oct((tmp_path / os.listdir(tmp_path)[0]).stat().st_mode)[-3:] == "700"
    held = ended(server, held["id"])
    assert held["state"] == "done", held
    status, data, headers = ask(server, "GET", f"/{held['result']}")
    image = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    assert image.shape == (30, 33, 27) and "attachment" in headers["content-disposition"]
    status, page, _ = ask(server, "GET", f"/{held['page']}")
    text = page.decode()
    assert status == 200 and "my &lt;b&gt;scan.nii.gz" in text and str(tmp_path) not in text
    base = f"/scans/{held['id']}/report/"
    links = re.findall(r'(?:src|data-script|data-before)="([^"]+)"', text)
    assert len(links) > 9 and all(ask(server, "GET", base + link)[0] == 200 for link in links)
    assert ask(server, "GET", base + "index.html")[0] == 302


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.nii.gz", b"garbage", "a.nii.gz"),
        ("a.nii", b"", "a.nii"),
        ("a.nii.gz", gzip.compress(b"garbage" * 100, mtime=0), "a.nii.gz"),
        ("a.exe", b"x", "expected a file name in"),
        ("", b"x", "expected a file name in"),
    ],
)
def test_garbage_gets_422(serve, name, data, says, tmp_path):
    server = serve()
    status, held, _ = upload(server, data, name)
    assert status == 422 and says in held["error"] and "\n" not in held["error"] and str(tmp_path) not in held["error"]
    (folder,) = tmp_path.iterdir()
    assert not list(folder.iterdir())


def test_a_cut_scan_and_one_that_unpacks_to_too_much(serve, scan):
    server = serve(voxels=1000)
    assert upload(server, scan[: len(scan) // 2])[0] == 422
    status, held, _ = upload(server, scan)
    assert status == 422 and "7920 voxels; at most 1000" in held["error"]


def test_too_large_gets_413_stated_or_not(serve, scan, tmp_path):
    server = serve(largest=1000)
    status, held, _ = upload(server, scan)
    assert status == 413 and "at most" in held["error"]
    blocks = (b"x" * 400 for _ in range(10))  # chunked: no length is stated
    status, held, _ = upload(server, blocks)
    assert status == 413
    (folder,) = tmp_path.iterdir()
    assert not list(folder.iterdir())


def test_nothing_but_its_own_files(serve, scan, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    server = serve()
    key = upload(server, scan)[1]["id"]
    assert ended(server, key)["state"] == "done"
    for path in (
        f"/scans/{key}/../../secret.txt",
        f"/scans/{key}/report/../../../secret.txt",
        f"/scans/{key}/report/%2e%2e/%2e%2e/%2e%2e/secret.txt",
        f"/scans/{key}/%2Fetc%2Fpasswd",
        f"/scans/{key}//etc/passwd",
        f"/scans/{key}/report/figures",
        "/scans/..%2f..%2fsecret.txt",
        "/scans/../secret.txt",
        f"/scans/{key}x/result.nii.gz",
        "/scans/",
        "/docs",
    ):
        status, data, _ = ask(server, "GET", path)
        assert status == 404 and b"secret" not in (data if isinstance(data, bytes) else b""), path


def test_other_sites_cannot_use_a_browser_to_reach_it(serve, scan):
    server = serve()
    assert ask(server, "GET", "/", Host="evil.example")[0] == 421
    assert ask(server, "GET", "/", Host=f"localhost:{server.address[1]}")[0] == 200
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        assert ask(server, "POST", "/scans", scan, Content_Type=kind, X_File_Name="a.nii.gz")[0] == 415


def test_one_at_a_time_and_busy_is_said(serve, scan, upscale):
    gate = Gate(upscale)
    server = serve(gate, waiting=2)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(upload(server, scan))) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    taken = [held["id"] for status, held, _ in answers if status == 202]
    refused = [(held["error"], headers) for status, held, headers in answers if status == 503]
    assert len(taken) == 3 and len(refused) == 5 and len(set(taken)) == 3
    assert all("busy" in error and headers["retry-after"] == "60" for error, headers in refused)
    gate.open.set()
    assert [ended(server, key)["state"] for key in taken] == ["done"] * 3 and gate.most == 1
    assert upload(server, scan)[0] == 202  # room again


def test_removed_and_forgotten(serve, scan, upscale, tmp_path):
    gate = Gate(upscale)
    server = serve(gate, keep=0.5)
    key = upload(server, scan)[1]["id"]
    assert ask(server, "DELETE", f"/scans/{key}")[0] == 204 and ask(server, "GET", f"/scans/{key}")[0] == 404
    gate.open.set()
    other = upload(server, scan)[1]["id"]
    assert ended(server, other)["state"] == "done"
    time.sleep(0.6)
    assert ask(server, "GET", f"/scans/{other}")[0] == 404
    (folder,) = tmp_path.iterdir()
    assert not list(folder.iterdir())


def test_a_failure_is_told_in_one_line(serve, scan, tmp_path):
    from mrisr.errors import MemoryBudgetError

    def fails(volume, progress):
        raise errors.pop()

    errors = [ZeroDivisionError("/secret/place"), MemoryBudgetError(f"{tmp_path}/x: too small")]
    server = serve(fails)
    first = ended(server, upload(server, scan)[1]["id"])
    assert first["state"] == "failed" and "too small" in first["error"] and str(tmp_path) not in first["error"]
    second = ended(server, upload(server, scan)[1]["id"])
    assert second["error"].startswith("a bug in mrisr") and "secret" not in second["error"]


def test_a_client_that_goes_away_leaves_nothing(serve, scan, tmp_path):
    server = serve(waiting=1)
    for _ in range(3):
        link = http.client.HTTPConnection(*server.address, timeout=60)
        link.putrequest("POST", "/scans")
        for name, value in {"Content-Type": "application/octet-stream", "X-File-Name": "a.nii.gz"}.items():
            link.putheader(name, value)
        link.putheader("Content-Length", "1000000")
        link.endheaders(b"x" * 1000)
        link.close()
    until = time.monotonic() + 20
    while (taken := upload(server, scan))[0] == 503 and time.monotonic() < until:
        time.sleep(0.05)
    assert taken[0] == 202
    ended(server, taken[1]["id"])
    (folder,) = tmp_path.iterdir()
    assert [p.name for p in folder.iterdir()] == [taken[1]["id"]]


def test_a_client_that_stops_sending_gives_its_place_back(serve, scan):
    server = serve(waiting=1, idle=0.3)
    links = [http.client.HTTPConnection(*server.address, timeout=60) for _ in range(2)]
    for link in links:
        link.putrequest("POST", "/scans")
        for name, value in {"Content-Type": "application/octet-stream", "X-File-Name": "a.nii.gz"}.items():
            link.putheader(name, value)
        link.putheader("Content-Length", "1000000")
        link.endheaders(b"x" * 1000)
    answers = [link.getresponse() for link in links]
    assert [answer.status for answer in answers] == [408, 408] and b"0.3 seconds" in answers[0].read()
    [link.close() for link in links]
    assert upload(server, scan)[0] == 202


def test_the_command_wipes_its_folder(weights, scan, tmp_path):
    """As it is started by a user; ended in the middle of the work."""
    words = ["-m", "mrisr.cli.main", "serve", "web", "--port", "0", "--model", weights, "--threads", "1"]
    place = tmp_path / "tmp"
    place.mkdir()
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)}
    )
    try:
        line = next(line for line in process.stderr if "web on" in line)
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])

        class There:
            address = ("127.0.0.1", port)

        assert upload(There, scan)[0] == 202
        assert any(p.name.startswith("mrisr-web-") for p in place.iterdir())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not [p for p in place.iterdir() if p.name.startswith("mrisr-web-")]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_port_that_is_taken_and_libraries_that_are_absent(serve, capsys, monkeypatch, weights):
    from mrisr.cli.main import main

    port = serve().address[1]
    words = ["serve", "web", "--port", str(port), "--model", str(weights)]
    assert main(words) == 2 and "cannot listen there" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(words) == 2 and "pip install '.[web]'" in capsys.readouterr().err


def test_in_a_browser(browser, serve, scan, tmp_path):
    server = serve()
    path = Path(tmp_path) / "é <b>.nii.gz"
    path.write_bytes(scan)
    said = []
    elsewhere = lambda url: url.startswith("http") and f":{server.address[1]}" not in url[:40]  # noqa: E731

    def watch(page):
        page.set_default_timeout(60_000)
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: said.append(str(e)))

    context = browser.new_context()
    context.on("request", lambda r: said.append(r.url) if elsewhere(r.url) else None)
    page = context.new_page()
    watch(page)
    page.goto(f"http://127.0.0.1:{server.address[1]}/", wait_until="commit")
    page.set_input_files("#file", path)
    page.wait_for_selector("[data-result]:not([hidden])")
    assert page.text_content(".job [data-name]") == "é <b>.nii.gz"
    with page.expect_download() as coming:
        page.click("[data-result]")
    assert coming.value.suggested_filename.endswith("_mrisr.nii.gz")
    with context.expect_page() as opening:
        page.click("[data-page]")
    shown = opening.value
    watch(shown)
    shown.click("[data-load]")
    shown.wait_for_selector("[data-load]", state="hidden")  # the policy of the page allows no evaluated predicate
    assert shown.text_content("[data-status]") == ""
    context.close()
    assert not said, said
