"""--report of the commands: one scan, many, BIDS; what a second run does; nothing of this machine in any file."""

from __future__ import annotations

import json
import re

import pytest

from mrisr.cli.main import main


def call(*words) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def scans(tmp_path, make_scans):
    """make(*names): heads of 16 x 18 x 14 voxels of 2 mm below tmp_path/raw."""
    return lambda *names: make_scans(tmp_path / "raw", *names)


def listing(folder):
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def check_says_nothing_of_this_machine(folder, *words):
    for path in folder.rglob("*"):
        if path.suffix in (".html", ".json"):
            text = path.read_text(encoding="utf-8")
            assert not [word for word in words if str(word) in text], path
            assert not re.search(r'"/\w', text), path


def test_one_scan(scans, weights, tmp_path):
    raw, rep = scans("a.nii.gz", "b.nii.gz"), tmp_path / "rep"
    how = ("--model", weights, "--voxel-size", 1.5, "--threads", 1, "--quiet", "--report", rep)
    one = ("upscale", "-i", raw / "a.nii.gz", "-o", tmp_path / "x.nii.gz", *how)
    assert call(*one, "--samples", 2) == 0
    assert (rep / "x.html").is_file() and (rep / "figures/x/axial_spread.png").is_file()
    assert call("upscale", "-i", raw / "b.nii.gz", "-o", tmp_path / "y.nii.gz", *how, "--psf", "kspace") == 0
    held = json.loads((rep / "figures/y/record.json").read_text())
    assert held["Numbers"]["chi2"] is not None and held["Sidecar"]["Mrisr"]["Input"]["Name"] == "b.nii.gz"
    table = (rep / "index.html").read_text()
    assert 'href="x.html"' in table and 'href="y.html"' in table
    check_says_nothing_of_this_machine(rep, tmp_path, tmp_path.name)

    (tmp_path / "x.nii.gz").unlink()
    before = listing(tmp_path)
    assert call(*one, "--no-sidecar") == 4 and listing(tmp_path) == before  # the page is there: --force
    assert call(*one, "--force") == 0 and not (rep / "figures/x/axial_spread.png").exists()
    (rep / "x.html").unlink()
    assert call(*one, "--skip-existing") == 0 and (rep / "x.html").is_file()  # made from the result that is there
    before = listing(tmp_path)
    assert call(*one, "--skip-existing") == 0 and listing(tmp_path) == before


def test_a_page_that_cannot_be_stops_before_the_work(scans, weights, tmp_path, capsys):
    raw, rep = scans("a.nii.gz"), tmp_path / "rep"
    rep.mkdir()
    (rep / "index.html").write_text("mine")
    words = ("upscale", "-i", raw / "a.nii.gz", "-o", tmp_path / "x.nii.gz", "--model", weights, "--report", rep)
    assert call(*words, "--force") == 4 and "was not written by mrisr" in capsys.readouterr().err
    assert (rep / "index.html").read_text() == "mine" and not (tmp_path / "x.nii.gz").exists()


def test_many_scans_with_a_broken_one(scans, weights, tmp_path):
    raw, rep, out = scans("a.nii.gz", "s/é <i>&'#.nii", "s/c.nii"), tmp_path / "rep", tmp_path / "out"
    (raw / "s/c.nii").write_bytes((raw / "s/c.nii").read_bytes()[:500])
    words = ("upscale", "-i", raw, "-o", out, "--report", rep, "--model", weights, "--voxel-size", 1.5, "--threads", 1)
    assert call(*words, "--quiet") == 9
    assert (rep / "a.html").is_file() and (rep / "s/é <i>&'#.html").is_file() and not (rep / "s/c.html").exists()
    table = (rep / "index.html").read_text(encoding="utf-8")
    assert "1 failed" in table and "s/c.nii" in table and "s/%C3%A9%20%3Ci%3E%26%27%23.html" in table
    assert "<i>&" not in table and str(tmp_path) not in table
    scans("a.nii.gz", "x.nii", "s/c.nii")
    assert call(*words, "--quiet", "--skip-existing") == 0
    assert (rep / "s/c.html").is_file() and "failed" not in (rep / "index.html").read_text(encoding="utf-8")
    check_says_nothing_of_this_machine(rep, tmp_path, tmp_path.name)


def test_bids_participants_and_group(scans, weights, tmp_path, capsys):
    names = [f"sub-{k}/anat/sub-{k}_T1w" for k in ("01", "02")]
    raw, out = scans(*(f"{name}.nii.gz" for name in names)), tmp_path / "out"
    (raw / "dataset_description.json").write_text('{"Name": "A <study>", "BIDSVersion": "1.10.0"}')
    how = ("--model", weights, "--voxel-size", 1.5, "--threads", 1, "--quiet")
    assert call("bids", raw, out, "group", *how) == 3 and "--report" in capsys.readouterr().err
    part = ("bids", raw, out, "participant", "--participant-label", "01", "--report", out, *how)
    assert call(*part) == 0
    page = out / "sub-01/anat/sub-01_res-1p5mm_desc-sr_T1w.html"
    assert page.is_file() and (page.parent / "figures" / page.stem / "axial_after.png").is_file()
    before = listing(out)
    assert call(*part) == 0 and listing(out) == before
    assert call("bids", raw, out, "group", *how) == 0
    table = (out / "index.html").read_text()
    assert "A &lt;study&gt;" in table and "1 without a page" in table and "sub-02/anat/sub-02_T1w.nii.gz" in table
    assert call("bids", raw, out, "participant", "--report", out, *how) == 0
    assert call("bids", raw, out, "group", *how) == 0 and "without a page" not in (out / "index.html").read_text()
    check_says_nothing_of_this_machine(out, tmp_path, tmp_path.name)
