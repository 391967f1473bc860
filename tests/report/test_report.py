"""The pages as files: what they say, what they never say, and whose files they replace."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mrisr import report
from mrisr.errors import InputError, OutputError
from mrisr.report import folder as folders
from mrisr.report import render, story, views, volumes
from mrisr.report.spectrum import gain, spectra

NASTY = "sub-01/anat/a <b>&\"'é日#%?"


class Links(HTMLParser):
    """Every src and href of a page, the tags that it has, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.tags, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = ("src", "href", "data-script", "data-before", "data-after")
        self.links += [value for name, value in attrs if name in names and not value.startswith("data:")]

    def handle_data(self, data):
        self.words.append(data)


def read(page: Path) -> Links:
    return Links(page.read_text(encoding="utf-8"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_page_and_all_that_it_links(twin, record, tmp_path):
    place = report.place_for(tmp_path / "rep", NASTY)
    source, result = twin
    warned = ["/home/someone/data/scan.nii: <script>alert(1)</script> & more"]
    report.write(place, source, result, record(Warnings=warned), spread=result.replace(np.abs(result.data) * 0.02))
    assert report.write_index(place.folder) == {"done": 1, "failed": 0, "missing": 0}
    page, table = read(place.page), read(place.folder / "index.html")
    for at, links in ((place.page, page.links), (place.folder / "index.html", table.links)):
        assert links
        for link in links:
            assert (at.parent / unquote(link)).is_file(), link
    pictures = [link for link in page.links if link.endswith(".png")]
    assert len(pictures) == 12
    assert place.page.stat().st_size < 200_000 and (place.folder / "index.html").stat().st_size < 200_000
    words = "".join(page.words)
    assert "a <b>&\"'é日#%?" in words and "<script>alert(1)</script> & more" in words  # as text, not as tags
    assert page.tags.count("script") == 1
    assert "someone" not in place.page.read_text() and "Research software" in words
    assert place.page.read_text().count('class="alarm"') == 1


def test_numbers_are_what_they_say(twin, record):
    source, result = twin
    shown = views.pair(source, result)
    bands = story.bands_of(record()["Mrisr"])
    found = story.numbers(shown, spectra(shown, bands), record())
    assert found.measured == pytest.approx(12.5) and found.gain > 3 and found.changed > 1
    assert found.chi2 is found.seam is found.doubt is None and found.warnings == 0
    fits = [{"Chi2": 1.1}, {"Chi2": 0.2}, {"Chi2": None}]
    other = story.numbers(shown, [None] * 3, record(Consistency=fits, SeamError=0.013, Warnings=["a", "b"]))
    assert (other.chi2, other.gain, other.warnings) == (0.2, None, 2) and other.seam == pytest.approx(1.3)
    same = views.Pair(shown.before, shown.before, shown.affine, shown.window, shown.before * 0 + 1)
    span = shown.window[1] - shown.window[0]
    still = story.numbers(same, spectra(same, bands), record())
    assert still.gain == 0 and still.changed == 0 and still.doubt == pytest.approx(100 / span)


def test_the_gain_is_of_the_synthesised_band_alone(twin):
    """Power added at one frequency shows beyond the edge, and does not below it."""
    source, result = twin
    shown = views.pair(source, result)
    place = np.arange(shown.before.shape[0])
    edge, top = 0.5 / 2.8, 0.5 / 1.4
    gains = []
    for cycles in (0.5 * edge, 0.5 * (edge + top)):
        wave = 50 * np.cos(2 * np.pi * cycles * 1.4 * place)[:, None, None].astype(np.float32)
        changed = views.Pair(shown.before, shown.before + wave, shown.affine, shown.window)
        gains.append(gain(spectra(changed, [(edge, top)] * 3)))
    assert abs(gains[0]) < 0.5 and gains[1] > 5


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, -1)])
def test_planes_are_radiological_whatever_the_stored_order(order, signs):
    """One bright corner per direction: right on the left, front and head up."""
    canonical = np.zeros((20, 24, 28), np.float32)
    canonical[4:16, 4:20, 4:24] = 1
    canonical[12:16, :, :] *= 2  # right
    canonical[:, 16:20, :] *= 3  # front
    canonical[:, :, 20:24] *= 5  # head
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, (axis, sign) in enumerate(zip(order, signs)):
        affine[axis, stored] = sign
    flipped = canonical[tuple(slice(None, None, signs[order.index(k)]) for k in range(3))]
    data = np.ascontiguousarray(np.transpose(flipped, order))
    pair = views.Pair(data, data, affine, (0.0, 30.0))
    for plane, (left, top) in {"axial": (2, 3), "coronal": (2, 5), "sagittal": (3, 5)}.items():
        cut = pair.slice(plane, data)
        rows, columns = cut.shape
        assert cut[rows // 2, : columns // 2].sum() > 1.1 * cut[rows // 2, columns // 2 :].sum(), (plane, left)
        assert cut[: rows // 2, columns // 2].sum() > 1.1 * cut[rows // 2 :, columns // 2].sum(), (plane, top)


def test_only_the_brain_is_shown(head):
    """Air goes, and what is more than BRAIN_MM below the top of the head."""
    data = np.zeros((60, 60, 120), np.float32)
    data[10:50, 12:50, 20:110] = 500
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    box = views.brain_box(data, affine)
    assert box[0][0] >= 4 and box[0][1] <= 56 and box[2][1] <= 116
    assert box[2][1] - box[2][0] == round(views.BRAIN_MM / 3)
    upside_down = np.diag([3.0, 3.0, -3.0, 1.0])
    low, high = views.brain_box(data, upside_down)[2]
    assert low <= 20 and high - low == round(views.BRAIN_MM / 3)


def test_pictures_have_square_pixels(twin):
    source, result = twin
    thick = np.diag([-1.4, 1.4, 4.2, 1.0])
    data = np.ascontiguousarray(result.data[:, :, ::3])
    picture = views.Pair(data, data, thick, (0.0, 900.0)).picture("coronal", "after")
    assert picture.size == (data.shape[0], data.shape[2] * 3)


def test_volumes_come_back_from_their_script(twin):
    shown = views.pair(*twin)
    text = volumes.scripts(shown)["after"]
    packed = re.fullmatch(r'\(window\.mrisrVolumes=.*\)\["after"\]="([A-Za-z0-9+/=]+)";\n', text)[1]
    image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(packed)))
    assert image.get_data_dtype() == np.uint8 and np.allclose(image.affine, shown.affine)
    low, high = shown.window
    expected = np.rint(np.clip((shown.after - low) / (high - low), 0, 1) * 255)
    assert np.array_equal(np.asarray(image.dataobj), expected)


def test_large_volumes_are_copied_at_one_millimetre_at_most(monkeypatch):
    monkeypatch.setattr(volumes, "MOST", 4000)
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32), (40, 40, 40))
    shown = views.Pair(ramp, ramp, np.diag([0.5, 0.5, 0.5, 1.0]), (0.0, 39.0))
    shape, affine = volumes._grid(shown)
    assert shape == (20, 20, 20) and np.allclose(np.diag(affine)[:3], 1.0)
    assert np.allclose(affine[:3, 3] + affine[:3, :3] @ np.full(3, 9.5), 0.5 * 19.5)  # the centre stays
    packed = volumes.scripts(shown)["before"].split('"')[3]
    grey = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(packed))).dataobj)
    assert np.allclose(np.diff(grey[10, 10, 2:-2].astype(float)), 255 / 39 * 2, atol=1.01)


def test_only_files_of_ours_are_replaced(twin, record, tmp_path):
    place = report.place_for(tmp_path, "a")
    report.check(place)
    assert not files(tmp_path)
    report.write(place, *twin, record())
    report.write_index(tmp_path)
    before = files(tmp_path)
    with pytest.raises(OutputError, match="--force"):
        report.check(place)
    with pytest.raises(OutputError, match="--force"):
        report.write(place, *twin, record(Warnings=["x"]))
    assert files(tmp_path) == before
    report.check(place, force=True)
    report.write(place, *twin, record(Warnings=["x"]), force=True)
    assert files(tmp_path) != before
    report.check(report.place_for(tmp_path, "b"))  # the table is ours: another page may come into it
    for name in ("c.html", "index.html"):
        (tmp_path / name).write_text("<html>mine")
        with pytest.raises(OutputError, match="was not written by mrisr"):
            report.check(report.place_for(tmp_path, "c"), force=True)
    with pytest.raises(OutputError, match="was not written by mrisr"):
        report.write_index(tmp_path)
    (tmp_path / "index.html").unlink()
    (tmp_path / "figures/d").mkdir()
    (tmp_path / "figures/d/holiday.png").write_text("x")
    with pytest.raises(OutputError, match="was not written by mrisr"):
        report.check(report.place_for(tmp_path, "d"), force=True)
    with pytest.raises(OutputError, match="is a file"):
        report.check(report.place_for(tmp_path / "c.html", "d"), force=True)


def test_a_write_that_fails_leaves_the_old_page(twin, record, tmp_path, monkeypatch):
    place = report.place_for(tmp_path, "a")
    report.write(place, *twin, record())
    before = files(tmp_path)
    monkeypatch.setattr(render, "plot", lambda line: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(place, *twin, record(), force=True)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["", "../a", "a/../../b", "/a", "a//b", "a\0b"])
def test_no_page_outside_of_its_folder(name, tmp_path):
    with pytest.raises(OutputError, match="not the name of a result"):
        report.place_for(tmp_path, name)


def test_a_scan_called_index(twin, record, tmp_path):
    place = report.place_for(tmp_path, "index")
    report.write(place, *twin, record())
    report.write_index(tmp_path)
    assert place.page.name == "index.scan.html" and "index.scan.html" in read(tmp_path / "index.html").links


def test_failures_and_missing_scans_are_in_the_table(twin, record, tmp_path):
    one, other = report.place_for(tmp_path, "s/a"), report.place_for(tmp_path, "s/b")
    report.write(one, *twin, record())
    report.failed(other, "s/b.nii", f"{Path.home()}/x y/b.nii: <i>broken</i>")
    assert report.write_index(tmp_path, missing=["s/c.nii"]) == {"done": 1, "failed": 1, "missing": 1}
    table = read(tmp_path / "index.html")
    words = "".join(table.words)
    assert "<i>broken</i>" in words and "s/c.nii" in words and str(Path.home()) not in words and "i" not in table.tags
    report.write(other, *twin, record())
    assert report.write_index(tmp_path) == {"done": 2, "failed": 0, "missing": 0}


def test_a_table_that_says_the_same_is_not_written_again(twin, record, tmp_path):
    report.write(report.place_for(tmp_path, "a"), *twin, record())
    report.write_index(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    report.write_index(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_damaged_record_is_named(twin, record, tmp_path):
    place = report.place_for(tmp_path, "a")
    report.write(place, *twin, record())
    made = {key: record()["Mrisr"][key] for key in ("Input", "WeightsSHA256", "Options")}
    assert report.is_current(place, made) and not report.is_current(place, made | {"Options": {"steps": 2}})
    (place.figures / "record.json").write_text('{"Format": 1}')
    assert not report.is_current(place, made)
    with pytest.raises(InputError, match="record.json"):
        report.write_index(tmp_path)


def test_tables_of_several_processes_lose_no_row(twin, record, tmp_path):
    names = [f"s{k}" for k in range(4)]
    errors = []

    def work(name):
        try:
            report.failed(report.place_for(tmp_path, name), name, "x")
            report.write_index(tmp_path)
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors and all(name in (tmp_path / "index.html").read_text() for name in names)
    assert not [p for p in os.listdir(tmp_path) if p.startswith(".mrisr")]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/data/study/scan.nii: broken", "scan.nii: broken"),
        ("in '/a/b/c.nii' and (/d/e)", "in 'c.nii' and (e)"),
        ("1/2 of https://example.org/a/b, 3 mm/s", "1/2 of https://example.org/a/b, 3 mm/s"),
        (f"{Path.home()}/my scans/a.nii", "my scans/a.nii"),
    ],
)
def test_paths_are_scrubbed(text, left):
    assert story.scrubbed(text) == left


def test_frames_and_grids_without_synthesis(twin, record, tmp_path):
    """4D shows its first frame and says so; where nothing was synthesised, the page says that."""
    source, result = twin
    four = [v.replace(np.stack([v.data, v.data * 2], axis=-1)) for v in twin]
    bands = [{**b, "MeasuredToCyclesPerMM": b["SynthesisedToCyclesPerMM"]} for b in record()["Mrisr"]["Bands"]]
    place = report.place_for(tmp_path, "a")
    report.write(place, *four, record(Bands=bands))
    words = " ".join("".join(read(place.page).words).split())
    assert "first of 2 frames shown" in words and "nothing was synthesised" in words
    held = json.loads((place.figures / "record.json").read_text())["Numbers"]
    assert held["gain"] is None and held["measured"] == pytest.approx(100)
    shown = Image.open(place.figures / "axial_after.png")
    assert shown.mode == "L" and np.asarray(shown).std() > 10


def test_the_viewer_is_what_its_note_says(tmp_path):
    noted = re.search(r"SHA-256 of the file: ([0-9a-f]{64})", render.VIEWER.with_name("LICENSES.txt").read_text())[1]
    assert hashlib.sha256(render.VIEWER.read_bytes()).hexdigest() == noted
    assert f"NiiVue {render.VIEWER_VERSION} " in render.VIEWER.with_name("LICENSES.txt").read_text()
    render.put_viewer(tmp_path)
    (tmp_path / render.viewer_link()).write_text("damaged")
    render.put_viewer(tmp_path)
    assert (tmp_path / render.viewer_link()).read_bytes() == render.VIEWER.read_bytes()


def test_a_report_of_another_kind_is_not_read(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("[]")
    with pytest.raises(InputError, match="mrisr-report/1"):
        folders.read_record(path)
