"""Build the documentation as a site that needs no network and no server: build/site/index.html.

python docs/site/build.py [--out DIR]

Pages are docs/, the model cards, the result pages, CHANGELOG and CONTRIBUTING, gathered in one folder with their links
rewritten to it. An error: a link to what is not there, a page that loads anything from the network, any warning of
Sphinx. Other files that pages link to are carried along.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).resolve().parent
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?(\))")
IMAGE = re.compile(r"^(```\{image\} )(\S+)()()$", flags=re.MULTILINE)


def place(path: Path) -> str:
    """Where a file of the repository (relative to it) stands in the site."""
    text = path.as_posix()
    for start, there in (("docs/", ""), ("benchmarks/results/", "results/"), ("mrisr/weights/", "models/")):
        if text.startswith(start):
            return there + text[len(start) :]
    return {"CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}.get(text, f"files/{text}")


def pages() -> list[Path]:
    """Every page, relative to the repository."""
    files = [p for p in (ROOT / "docs").rglob("*.md")]
    files += [*(ROOT / "benchmarks" / "results").glob("*.md"), *(ROOT / "mrisr" / "weights").glob("*.md")]
    files += [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
    return sorted(path.relative_to(ROOT) for path in files)


def gather(source: Path) -> list[str]:
    """Write every page and what it links to into `source`; returns the links that lead nowhere."""
    broken, every = [], set(pages())
    for page in sorted(every):
        target = source / place(page)

        def moved(match: re.Match, page: Path = page, target: Path = target) -> str:
            before, link, anchor, after = match.groups()
            # The tables in the model cards have links from the root of the repository.
            for base in (page.parent, Path()):
                path = Path(os.path.normpath(base / link))
                if not path.is_absolute() and (ROOT / path).exists():
                    break
            else:
                broken.append(f"{page}: {link}")
                return match.group(0)
            there = source / place(path)
            if not (path.suffix == ".md" and path in every):
                there.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / path).is_dir():
                    shutil.copytree(ROOT / path, there, dirs_exist_ok=True)
                else:
                    shutil.copyfile(ROOT / path, there)
            return f"{before}{os.path.relpath(there, target.parent)}{anchor or ''}{after}"

        text = (ROOT / page).read_text(encoding="utf-8")
        text = IMAGE.sub(moved, LINK.sub(moved, text))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return broken


def add_unlisted(source: Path) -> list[str]:
    """Put pages of docs/ that no table of contents lists at the end of the first page's; returns them."""
    listed: set[str] = set()
    for page in source.rglob("*.md"):
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            entries = [line for line in block.split() if not line.startswith(":")]
            listed |= {os.path.normpath(page.parent.relative_to(source) / entry) for entry in entries}
    top = [p for p in source.rglob("*.md") if p.relative_to(source).parts[0] not in ("results", "models", "files")]
    names = sorted(p.relative_to(source).with_suffix("").as_posix() for p in top)
    missing = [name for name in names if name not in listed and name != "index"]
    if missing:
        index = source / "index.md"
        toctree = "\n".join(["", "```{toctree}", ":caption: More", ":maxdepth: 1", *missing, "```", ""])
        index.write_text(index.read_text("utf-8") + toctree, encoding="utf-8")
    return missing


# What a browser loads by itself; links that a reader follows are another matter.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|audio|video|embed)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|icon|preload|preconnect|dns-prefetch|manifest|modulepreload))"""
    r"""[^>]*\bhref=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|(?:url\(|@import\s)\s*["']?((?:https?:)?//[^"')\s]+)""",
    flags=re.IGNORECASE,
)


def loaded_from_elsewhere(site: Path) -> list[str]:
    """What pages and style sheets below `site` load over the network: "file: address"."""
    links = []
    for path in sorted(p for p in site.rglob("*") if p.suffix in (".html", ".css", ".svg")):
        for match in LOADED.finditer(path.read_text(encoding="utf-8")):
            links.append(f"{path.relative_to(site)}: {next(filter(None, match.groups()))}")
    return links


def build(out: Path) -> int:
    """Build into `out`, which then holds the site and nothing else; returns Sphinx's exit code."""
    from sphinx.cmd.build import main as sphinx

    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "pages"
        broken = gather(source)
        if broken:
            print("links that lead nowhere:", *broken, sep="\n  ", file=sys.stderr)
            return 1
        add_unlisted(source)
        site = Path(scratch) / "site"
        code = sphinx(["-q", "-W", "--keep-going", "-j", "1", "-c", str(SITE), str(source), str(site)])
        if code == 0 and (foreign := loaded_from_elsewhere(site)):
            print("pages that load from the network:", *foreign, sep="\n  ", file=sys.stderr)
            return 1
        if code == 0:
            shutil.rmtree(site / ".doctrees", ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(site, out)
        return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", metavar="DIR")
    args = parser.parse_args()
    code = build(args.out)
    if code == 0:
        print(f"{args.out}/index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
