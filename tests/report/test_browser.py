"""The pages in a browser, from a folder, without a network: pictures move, the table sorts, the viewer draws."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mrisr import report


@pytest.fixture(scope="module")
def made(twin, tmp_path_factory):
    """make(record, names) -> folder of a report, once."""
    held = {}

    def make(record, *names):
        if names not in held:
            folder = held[names] = tmp_path_factory.mktemp("rep")
            for place, name in enumerate(names):
                gap = (None, 0.03, 0.01, 0.2)[place % 4]
                changes = {"SeamError": gap, "Warnings": ["<b>odd</b>"] * place}
                report.write(report.place_for(folder, name), *twin, record(**changes))
            report.write_index(folder)
        return held[names]

    return make


def seen(element) -> np.ndarray:
    """What an element looks like: [rows, columns] of grey."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("L"), dtype=np.float32)


NAMES = ("a", "s/b <i>&\"'é日#%?", "c", "d10")


def test_slider_flicker_and_difference(made, record, open_page):
    page = open_page(made(record, *NAMES) / f"{NAMES[1]}.html")
    frame = page.locator("figure[data-plane=axial] .frame")
    frame.scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.querySelectorAll('img.before, img.after')].every(i => i.complete && i.naturalWidth)"
    )
    assert page.evaluate("document.querySelectorAll('.alarm b').length") == 0  # names and warnings are text
    pictures = {}
    for share in (0, 50, 100):
        page.evaluate(
            "v => { const r = document.querySelector('figure[data-plane=axial] input'); r.value = v;"
            " r.dispatchEvent(new Event('input')); }",
            share,
        )
        pictures[share] = seen(frame)
    assert all(np.abs(pictures[a] - pictures[b]).mean() > 1 for a, b in ((0, 100), (0, 50), (50, 100)))
    coronal = page.locator("figure[data-plane=coronal] input")
    assert coronal.input_value() == "100"  # one divider for all
    page.click("[data-show=before]")
    before = seen(frame)
    page.click("[data-show=after]")
    after = seen(frame)
    assert np.abs(before - after).mean() > 1
    page.keyboard.press("x")
    assert np.array_equal(seen(frame), before)
    page.click("[data-show=difference]")
    page.wait_for_function("[...document.querySelectorAll('img.difference')].every(i => i.complete && i.naturalWidth)")
    assert np.abs(seen(frame) - after).mean() > 5
    page.click("[data-show=flicker]")
    page.wait_for_function("document.getElementById('compare').dataset.shown === 'before'")
    page.wait_for_function("document.getElementById('compare').dataset.shown === 'after'")


def test_nothing_overflows_in_light_and_dark(made, record, open_page):
    folder = made(record, *NAMES)
    for path in (folder / "index.html", folder / f"{NAMES[1]}.html"):
        page = open_page(path)
        for width in (1280, 800, 390):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path.name, width)
        red = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert (int(page.evaluate(red)) < 80) == (scheme == "dark")
        page.click("[data-theme-switch]")
        assert int(page.evaluate(red)) > 200


def test_the_table_sorts_and_finds(made, record, open_page):
    page = open_page(made(record, *NAMES) / "index.html")
    rows = lambda: page.eval_on_selector_all("#scans tbody tr:not([hidden])", "r => r.map(x => x.dataset.name)")  # noqa: E731
    assert rows() == sorted(NAMES)
    page.click("[data-sort=warnings]")
    assert rows() == list(NAMES)[::-1]
    page.click("[data-sort=warnings]")
    assert rows() == list(NAMES)
    page.click("[data-sort=seam]")
    assert rows() == [NAMES[3], NAMES[1], NAMES[2], NAMES[0]]  # what has none comes last
    page.click("[data-sort=seam]")
    assert rows() == [NAMES[2], NAMES[1], NAMES[3], NAMES[0]]
    page.fill("#find", "B <I>")
    assert rows() == [NAMES[1]]
    page.click("#scans td.name a >> visible=true")
    page.wait_for_url("**/s/b*.html")
    assert page.text_content("h1") == "b <i>&\"'é日#%?"


def test_the_viewer(made, record, open_page):
    """From the folder, offline: the canvas is not blank, and going from after to before changes it."""
    page = open_page(made(record, *NAMES) / f"{NAMES[1]}.html", viewport={"width": 800, "height": 600})
    page.click("[data-load]")
    page.wait_for_function("window.mrisrView || document.querySelector('[data-status]').textContent.includes('cannot')")
    assert page.text_content("[data-status]") == ""
    canvas = page.locator("#viewer canvas")
    after = seen(canvas)
    assert after.shape[0] > 300 and after.std() > 20 and (after > 100).mean() > 0.05
    page.evaluate(
        "() => { const r = document.querySelector('[data-blend]'); r.value = 0; r.dispatchEvent(new Event('input')); }"
    )
    assert np.abs(seen(canvas) - after).mean() > 1


def test_a_viewer_without_its_files_says_so(twin, record, browser, tmp_path):
    place = report.place_for(tmp_path, "a")
    report.write(place, *twin, record())
    (place.figures / "before.js").unlink()
    page = browser.new_page()
    page.goto(place.page.as_uri(), wait_until="commit")
    page.click("[data-load]")
    page.wait_for_function(
        "document.querySelector('[data-status]').textContent.includes('before.js is not beside this page')"
    )
    page.close()
