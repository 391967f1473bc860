"""Run the Python blocks of a page, in order, as a reader would; the tutorial's pictures come from it.

python docs/site/run_page.py docs/tutorial.md --pictures docs/pictures
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

MOST_BYTES = 150_000


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page, each with empty lines before it so that errors name the page's own lines."""
    text = page.read_text(encoding="utf-8")
    matches = re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return ["\n" * text[: m.start(1)].count("\n") + m.group(1) for m in matches]


def run(page: Path, folder: Path) -> dict:
    """Run them in `folder`; returns the names that they leave."""
    names: dict = {"__name__": "page"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        for block in blocks(page):
            exec(compile(block, str(page), "exec"), names)  # noqa: S102 - our own page
    finally:
        os.chdir(before)
    return names


def keep(picture: Path, target: Path) -> None:
    """A picture with as few greys as the eye needs, for a page."""
    from PIL import Image

    from mrisr.preview import fewer_greys

    with Image.open(picture) as image:
        fewer_greys(image.convert("L")).save(target, format="PNG", optimize=True)
    if target.stat().st_size > MOST_BYTES:
        sys.exit(f"{target} has {target.stat().st_size} bytes; at most {MOST_BYTES} are committed: zoom in")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="keep the pictures that it makes there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(args.page.resolve(), Path(folder))
        for picture in sorted(Path(folder).glob("*.png")) if args.pictures else ():
            keep(picture, args.pictures / picture.name)


if __name__ == "__main__":
    main()
