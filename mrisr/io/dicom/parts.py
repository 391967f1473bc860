"""The files of a DICOM source: a file, several, a folder with all below it, a DICOMDIR, or a zip of any of these."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mrisr.errors import InputError

MOST_FILES = 200_000  # below one folder; a study has a few thousand
LARGEST = 4 << 30  # bytes of one file: DICOM's lengths end there
BOMB_SIZE, BOMB_RATIO = 64 << 20, 300  # deflate reaches 1032, scans 2 to 20
HEAD = 512  # bytes that tell what a file is
WHY = {"empty": "is empty (0 bytes)", "gone": "is a link to a file that is not there"}
# Endings of files that nobody means as DICOM, and DICOM's value representations.
FOREIGN = re.compile(
    "avi|bat|bmp|bval|bvec|cfg|css|csv|db|dll|docx?|exe|gif|gz|hdr|html?|ico|img|inf|ini|jpe?g|js|json|log|md|mgz|mp4|nii|"
    "np[yz]|pdf|png|ps1|py|rtf|sh|svg|tar|tiff?|tsv|txt|xlsx?|xml|xz|ya?ml|zip"
)
EXPLICIT = re.compile("A[EST]|CS|D[AST]|F[DL]|IS|L[OT]|O[BDFLVW]|PN|S[HLQSTV]|TM|U[CILNRSTV]")


@dataclass(frozen=True)
class Part:
    """One file, or one member of a zip. As text it is what messages call it."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"

    @property
    def name(self) -> str:
        """Its own name, without folders."""
        return self.path.name if self.member is None else self.member.rsplit("/", 1)[-1]

    def read(self, most: int = LARGEST) -> bytes:
        """The first `most` bytes. Raises InputError where it cannot be read or is larger than DICOM can be."""
        try:
            if self.member is None:
                with self.path.open("rb") as stream:
                    data = stream.read(min(most, os.fstat(stream.fileno()).st_size))
                    size = os.fstat(stream.fileno()).st_size
            else:
                with zipfile.ZipFile(self.path) as archive:
                    info = archive.getinfo(self.member)
                    size = info.file_size
                    if size > BOMB_SIZE and size > BOMB_RATIO * max(1, info.compress_size):
                        raise InputError(f"{self}: unpacks to {size} bytes from {info.compress_size}; not unpacked")
                    with archive.open(info) as stream:
                        data = stream.read(min(most, size))
        except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError, EOFError) as error:
            raise InputError(
                f"{self}: cannot be read ({_reason(error)}); check its permissions, copy it again"
            ) from error
        except (zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{self}: damaged in the zip ({_reason(error)}); copy the zip again") from error
        if size > LARGEST:
            raise InputError(f"{self}: {size} bytes; a DICOM file ends at {LARGEST}")
        return data


@dataclass
class Content:
    """What a source holds: `dicom` files to read, `broken` ones that ought to be DICOM (and why not), and others."""

    name: str
    dicom: list[Part] = field(default_factory=list)
    broken: list[tuple[Part, str]] = field(default_factory=list)
    foreign: list[Part] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # named by a DICOMDIR, not there
    directory: Part | None = None  # a DICOMDIR that was given as the source


def find(source: str | os.PathLike | Iterable[str | os.PathLike]) -> Content:
    """The files of `source`. Raises InputError where it is not there or holds no DICOM file."""
    if not isinstance(source, (str, os.PathLike)):
        paths = [Path(p) for p in source]
        if not paths:
            raise InputError("DICOM series: an empty list; give its files, or their folder")
        content = Content(f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0]))
        content.dicom = [Part(_file(p)) for p in paths]  # each was asked for, so each is read or refused
        return content
    path = Path(source)
    if path.is_dir():
        content = _sorted(os.fspath(source), [Part(p) for p in _below(path)])
    elif zipfile.is_zipfile(_file(path)):
        content = _sorted(os.fspath(source), [Part(path, name) for name in _members(path)])
    elif path.name.upper() == "DICOMDIR":
        return Content(os.fspath(source), directory=Part(path))
    else:
        return Content(os.fspath(source), [Part(path)])
    if not content.dicom:
        raise InputError(
            f"{source}: no DICOM file among its {len(content.foreign) + len(content.broken)} files; give the "
            "folder, DICOMDIR or zip that holds the series"
        )
    return content


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether `path` is a DICOM file or DICOMDIR, or a folder or zip with one anywhere in it. Raises InputError."""
    path = Path(path)
    if path.is_dir():
        return any(kind_of(Part(p)) == "dicom" for p in _below(path))
    if not path.is_file():
        return False
    if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
        return any(kind_of(Part(path, name)) == "dicom" for name in _members(path))
    return kind_of(Part(path)) == "dicom"


def kind_of(part: Part) -> str:
    """What the start of a file says: "dicom" (with or without the preamble), "empty", "text" or "binary"; "gone" of a
    link to nothing."""
    if "." in part.name and FOREIGN.fullmatch(part.name.rsplit(".", 1)[-1].lower()):
        if part.member is None and not part.path.exists():
            return "text"
        try:
            head = part.read(HEAD)
        except InputError:  # nobody means it as DICOM: that it cannot be read matters to nobody
            return "text"
        return "dicom" if head[128:132] == b"DICM" else "text"
    if part.member is None and not part.path.exists():
        return "gone"
    head = part.read(HEAD)
    if not head:
        return "empty"
    if head[128:132] == b"DICM" or bare(head):
        return "dicom"
    printable = sum(32 <= b < 127 or b in b"\t\r\n" for b in head)
    return "text" if printable > 0.9 * len(head) else "binary"


def bare(head: bytes) -> bool:
    """Whether a file without the preamble begins as a DICOM data set does: with an element of group 2 or 8."""
    if len(head) < 16:
        return False
    for order in ("little", "big"):
        group, element = (int.from_bytes(head[i : i + 2], order) for i in (0, 2))
        if group in (0x0002, 0x0008) and element <= 0x0100:
            explicit = EXPLICIT.fullmatch(head[4:6].decode("latin-1")) is not None
            return explicit or (order == "little" and int.from_bytes(head[4:8], "little") <= 1024)
    return False


def _sorted(name: str, parts: list[Part]) -> Content:
    """Each file to where it belongs. One that is named like the DICOM files, yet is none, is broken, not foreign."""
    content, others = Content(name), []
    for part in parts:
        kind = kind_of(part)
        if kind != "dicom":
            others.append((part, kind))
        elif part.name.upper() != "DICOMDIR":  # what it lists lies below the same folder
            content.dicom.append(part)
    alike = {_ending(part.name) for part in content.dicom}
    for part, kind in others:
        if kind != "text" and not part.name.startswith(".") and _ending(part.name) in alike:
            content.broken.append((part, WHY.get(kind, "is no DICOM file: cut short, or damaged at its start")))
        else:
            content.foreign.append(part)
    return content


def _ending(name: str) -> str:
    """The ending by which files are named alike; numbers (`.23`, parts of a UID) are one ending, no ending another."""
    ending = name.rsplit(".", 1)[-1].lower() if "." in name else ""
    return "#" if re.fullmatch(r"\d+", ending) else ending


def _below(folder: Path) -> Iterable[Path]:
    """Every regular file below `folder`, and every link to nothing, in the order of their names."""
    count = 0

    def refuse(error: OSError):
        raise InputError(f"{error.filename}: cannot be entered ({error.strerror}); check its permissions") from error

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in sorted(files):
            path = Path(root, name)
            if not path.is_file() and path.exists():
                continue
            count += 1
            if count > MOST_FILES:
                raise InputError(f"{folder}: more than {MOST_FILES} files below it; give the folder of the series")
            yield path


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: cannot be read as a zip ({_reason(error)}); copy it again") from error
    if len(names) > MOST_FILES:
        raise InputError(f"{path}: more than {MOST_FILES} files in the zip; give one with the series only")
    return sorted(names)


def _file(path: Path) -> Path:
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, in a list of files; give the folder alone, or its files")
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; check the path")
        if not path.is_file():
            raise InputError(f"{path}: is not a regular file; copy it to one first")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be looked up ({_reason(error)}); check its name and permissions") from error
    return path


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
