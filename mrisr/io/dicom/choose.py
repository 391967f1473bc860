"""Which series of a folder, and which group of frames of a series: listed, and chosen by number, name or UID."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrisr.errors import InputError
from mrisr.io.dicom.frame import ALIKE, Frame
from mrisr.io.dicom.header import Header, check_picture

SHOWN = 12  # entries of a list in a message


@dataclass(frozen=True, eq=False)
class Entry:
    """One series of a source. `refusal` says why it cannot be used, or is empty."""

    uid: str
    headers: tuple[Header, ...]
    refusal: str

    @property
    def number(self) -> int | None:
        return self.headers[0].series_number

    @property
    def description(self) -> str:
        return self.headers[0].description

    @property
    def own(self) -> bool:
        return self.headers[0].own

    def __str__(self) -> str:
        number = "no number" if self.number is None else str(self.number)
        files = len(self.headers)
        text = f"{number} ({self.description or 'no description'}, {files} file{'s' * (files > 1)}, UID {self.uid})"
        return f"{text}: {self.refusal.split(';')[0]}" if self.refusal else text


@dataclass(frozen=True, eq=False)
class Group:
    """Frames of one series that belong to one volume: one frame type, echo, temporal position and stack."""

    number: int
    label: str
    frames: tuple[Frame, ...]

    def __str__(self) -> str:
        return f"{self.number} ({self.label}, {len(self.frames)} frames)"


def entries(headers: list[Header]) -> list[Entry]:
    """The series among headers of pictures, by number and UID."""
    by_uid: dict[str, list[Header]] = {}
    for header in headers:
        by_uid.setdefault(header.series_uid, []).append(header)
    result = []
    for uid, members in by_uid.items():
        refusal = next(((h, why) for h in members if (why := check_picture(h))), None)
        result.append(Entry(uid, tuple(members), refusal[1] if refusal else ""))
    return sorted(result, key=lambda e: (e.number is None, e.number or 0, e.uid))


def choose_series(series: list[Entry], choice: Any, name: str) -> Entry:
    """The series that `choice` (a number, UID or description; None: the only one) names."""
    if choice is None:
        usable = [e for e in series if not e.refusal]
        scans = [e for e in usable if not e.own] or usable
        if len(scans) == 1:
            return scans[0]
        if not scans:
            raise InputError(f"{name}: {series[0].headers[0].part}: {series[0].refusal}{_more(series)}")
        raise InputError(f"{name}: {len(series)} series; choose one with --series (series= in Python): {_list(series)}")
    text = str(choice).strip()
    tests: list[Callable[[Entry], bool]] = [
        lambda e: e.uid == text,
        lambda e: e.number is not None and str(e.number) == text,
        lambda e: e.description.lower() == text.lower(),
        lambda e: bool(text) and text.lower() in e.description.lower(),
    ]
    for test in tests:
        hits = [e for e in series if test(e)]
        if len(hits) > 1:
            raise InputError(f"{name}: series {text!r} fits {len(hits)}; give the UID of one: {_list(hits)}")
        if hits and hits[0].refusal:
            raise InputError(f"{name}: {hits[0].headers[0].part}: {hits[0].refusal}")
        if hits:
            return hits[0]
    raise InputError(f"{name}: no series {text!r} (number, UID or description); it holds {_list(series)}")


def groups(frames: list[Frame]) -> list[Group]:
    """Frames by volume: parted by orientation, type, echo, time and stack always, by the rest where slices double."""
    directions = _directions(frames)
    keys: list[tuple[str, Callable[[Frame], Any]]] = [
        ("orientation", lambda f: directions[id(f)]),
        ("type", lambda f: (f.component, f.image_type)),
        ("echo", lambda f: None if f.echo_time is None else round(f.echo_time, 3)),
        ("stack", lambda f: f.stack),
        ("temporal", lambda f: f.temporal),
    ]
    parted = _part(frames, keys)
    for extra in (
        ("echo number", lambda f: f.echo_number),
        ("b-value", lambda f: f.b_value),
        ("acquisition", lambda f: f.acquisition),
        ("matrix", lambda f: (f.rows, f.columns)),
    ):
        if not any(_doubled(members) for members in parted.values()):
            break
        finer = _part(frames, [*keys, extra])
        if len(finer) > len(parted) and len({len(members) for members in finer.values()}) == 1:
            keys, parted = [*keys, extra], finer
    ordered = sorted(parted, key=lambda key: tuple((v is None, str(type(v)), v) for v in _flat(key)))
    differing = [i for i in range(len(keys)) if len({key[i] for key in parted}) > 1]
    return [
        Group(n, _label(parted[key][0], [(keys[i][0], key[i]) for i in differing]), tuple(parted[key]))
        for n, key in enumerate(ordered, start=1)
    ]


def choose_group(candidates: list[Group], choice: Any, name: str) -> Group:
    """The group that `choice` (a number of the list, or words of one entry; None: the only one) names."""
    if choice is None:
        if len(candidates) == 1:
            return candidates[0]
        mixed = "mixed orientation, " if any("orientation" in g.label for g in candidates) else ""
        raise InputError(
            f"{name}: {mixed}{len(candidates)} groups of frames in one series; choose one with --group (group= in "
            f"Python): {_list(candidates)}"
        )
    text = str(choice).strip().lower()
    hits = [g for g in candidates if str(g.number) == text] or [
        g for g in candidates if text and text in g.label.lower()
    ]
    if len(hits) != 1:
        fit = "none fits" if not hits else f"{len(hits)} fit"
        raise InputError(f"{name}: group {choice!r}: {fit}; it holds {_list(candidates)}")
    return hits[0]


def _part(frames: list[Frame], keys) -> dict[tuple, list[Frame]]:
    parted: dict[tuple, list[Frame]] = {}
    for frame in frames:
        parted.setdefault(tuple(key(frame) for _, key in keys), []).append(frame)
    return parted


def _directions(frames: list[Frame]) -> dict[int, int]:
    """The orientation of each frame as a number: 1 for that of the first frame, and so on."""
    turns: list[np.ndarray] = []
    number_of = {}
    for frame in frames:
        turn = np.concatenate([frame.along_row, frame.along_column])
        which = next((i for i, other in enumerate(turns) if np.abs(turn - other).max() <= ALIKE), None)
        if which is None:
            turns.append(turn)
            which = len(turns) - 1
        number_of[id(frame)] = which + 1
    return number_of


def _doubled(frames: list[Frame]) -> bool:
    places = {tuple(round(float(v), 2) for v in f.position) for f in frames}
    return len(places) < len(frames)


def _flat(key: tuple) -> tuple:
    return tuple(part if not isinstance(part, tuple) else "\\".join(map(str, _flat(part))) for part in key)


def _label(frame: Frame, differing: list[tuple[str, Any]]) -> str:
    words = [frame.component.lower() or "picture"]
    for name, value in differing:
        if name == "type":
            words.append("\\".join(frame.image_type))
        elif name == "echo":
            number = f" {frame.echo_number}" if frame.echo_number is not None else ""
            words.append(f"echo{number} of {value:g} ms" if value is not None else "no echo time")
        else:
            words.append(f"{name} {value}")
    return ", ".join(words)


def _list(items: list) -> str:
    more = f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(map(str, items[:SHOWN])) + more


def _more(series: list[Entry]) -> str:
    return f" (and none of the {len(series)} series can be used)" if len(series) > 1 else ""
