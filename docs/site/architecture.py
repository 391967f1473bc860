"""Draw docs/pictures/architecture.svg: the house as boxes, and the three journeys as lines of rooms.

python docs/site/architecture.py
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

OUT = Path(__file__).resolve().parents[1] / "pictures" / "architecture.svg"
WIDTH, MARGIN, BOX, GAP = 960, 20, 46, 12
FLOORS = (  # top to bottom: who is above may use who is below
    ("doors", "#e8eef7", ("cli", "batch: folders, BIDS", "serve: DICOM, MRD", "evaluate", "your program")),
    ("one call", "#dbe7f3", ("api.upscale", "libmrisr (C)")),
    ("rooms", "#e9f3e4", ("infer: plan, then run", "train: teacher, distil", "export, bundle, weights")),
    ("tools", "#f5eedd", ("nn", "diffusion", "data", "physics: the scanner")),
    ("ground", "#f3e3e0", ("ops + kernels + csrc/core", "io", "volume, grid, errors")),
)
JOURNEYS = (
    ("a scan", "#2f6db0", ("io", "plan", "start", "denoise (engine)", "finish", "account", "io")),
    ("a training batch", "#3f8f4f", ("sources", "crop or synth", "degrade", "network", "loss", "checkpoint")),
    ("an operator call", "#b0612f", ("public function", "custom op", "choose", "C++ | CUDA | Triton | reference")),
)


def box(x: float, y: float, width: float, text: str, fill: str, stroke: str = "#556") -> str:
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX - 10}" rx="6" '
        f'fill="{fill}" stroke="{stroke}"/>'
        f'<text x="{x + width / 2:.0f}" y="{y + BOX / 2:.0f}" text-anchor="middle">{escape(text)}</text>'
    )


def label(y: float, text: str, colour: str = "#223") -> str:
    return f'<text x="{MARGIN}" y="{y + BOX / 2:.0f}" font-weight="bold" fill="{colour}">{escape(text)}</text>'


def row(y: float, names: tuple[str, ...], fill: str, stroke: str, arrows: bool) -> list[str]:
    left = MARGIN + 130
    room = WIDTH - MARGIN - left - GAP * (len(names) - 1)
    share = [len(name) + 6 for name in names]
    parts, middle = [], y + (BOX - 10) / 2
    for k, name in enumerate(names):
        width = room * share[k] / sum(share)
        parts.append(box(left, y, width, name, fill, stroke))
        left += width + GAP
        if arrows and k + 1 < len(names):
            tip = f"M{left - GAP:.0f} {middle:.0f}H{left - 1:.0f}m-5 -5l5 5l-5 5"
            parts.append(f'<path d="{tip}" fill="none" stroke="{stroke}" stroke-width="2"/>')
    return parts


def drawing() -> str:
    parts, y = [], MARGIN
    for name, fill, rooms in FLOORS:
        parts += [label(y, name), *row(y, rooms, fill, "#99a", arrows=False)]
        y += BOX
    y += GAP
    for name, colour, rooms in JOURNEYS:
        parts += [label(y, name, colour), *row(y, rooms, "#fff", colour, arrows=True)]
        y += BOX
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + MARGIN - 10}" font-family="sans-serif" '
        f'font-size="13">\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    OUT.write_text(drawing(), encoding="utf-8")
