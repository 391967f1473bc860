"""What the memory limits of this process's own control group leave, and of the groups around it.

A job of SLURM, Kubernetes or systemd is limited by its own group, not by the root's. Version 2 has one tree, version 1
one of its own for memory; what a container sees of either is said by /proc/self/mountinfo. Pages of files that can be
dropped count as free, although they count as used by the group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Of version 2 and 1: limit, use, and the line of memory.stat that holds droppable pages of files.
FILES = {
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free(root: Path = Path("/")) -> int | None:
    """Bytes that the tightest group leaves; None where no group has a limit. `root`: where /proc and /sys are."""
    limits = [rest for kind, folder in _groups(root) if (rest := _rest(kind, folder)) is not None]
    return min(limits, default=None)


def _rest(kind: str, folder: Path) -> int | None:
    limit, usage, droppable = FILES[kind]
    most, now = _number(folder / limit), _number(folder / usage)
    if most is None or now is None:
        return None
    cache = next(
        (int(line.split()[1]) for line in read(folder / "memory.stat").splitlines() if _is(line, droppable)), 0
    )
    return max(0, most - max(0, now - cache))


def _is(line: str, name: str) -> bool:
    words = line.split()
    return len(words) == 2 and words[0] == name and words[1].isdigit()


def _groups(root: Path) -> Iterator[tuple[str, Path]]:
    """(kind, folder) of the process's group and of every group around it."""
    paths = dict(_memberships(read(root / "proc/self/cgroup")))
    for kind, above, mount in _mounts(read(root / "proc/self/mountinfo")):
        if kind not in paths:
            continue
        inside, top = paths[kind], root / mount.lstrip("/")
        # What is mounted may be a part of the tree, and the path be that of the host: then the mount itself is ours.
        below = inside[len(above.rstrip("/")) :] if (inside + "/").startswith(above.rstrip("/") + "/") else ""
        folder = top / below.strip("/")
        if ".." in folder.parts or not folder.is_dir():
            folder = top
        yield kind, folder
        while folder != top:
            folder = folder.parent
            yield kind, folder


def _memberships(text: str) -> Iterator[tuple[str, str]]:
    """/proc/self/cgroup: "0::/path" of version 2, "9:memory:/path" of version 1."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield "cgroup2", path
        elif "memory" in controllers.split(","):
            yield "cgroup", path


def _mounts(text: str) -> Iterator[tuple[str, str, str]]:
    """/proc/self/mountinfo: (kind, the part of the tree that is mounted, where)."""
    for line in text.splitlines():
        words, _, end = line.partition(" - ")
        fields, kind = words.split(), end.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and "memory" in kind[2].split(",")):
            yield kind[0], fields[3], fields[4]


def _number(path: Path) -> int | None:
    """The number in a file; None for "max" and where there is no such file."""
    text = read(path).strip()
    return int(text) if text.isdigit() else None


def read(path: Path) -> str:
    """A file of the kernel's, or nothing where this system has no such file."""
    try:
        return path.read_text()
    except OSError:
        return ""
