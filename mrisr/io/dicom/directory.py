"""The files that a DICOMDIR lists."""

from __future__ import annotations

from pathlib import Path

from mrisr.errors import InputError, because
from mrisr.io.dicom.header import parse
from mrisr.io.dicom.parts import Content, Part
from mrisr.io.dicom.values import Values


def with_images(content: Content) -> Content:
    """`content` with the images of its DICOMDIR as files to read; names of those that are not there in `absent`.

    Raises InputError where the DICOMDIR cannot be read or none of its images is there.
    """
    part = content.directory
    dataset = parse(part, pixels=False)[0]
    try:
        records = list(dataset.get("DirectoryRecordSequence") or [])
        names = [Values([r], str(part)) for r in records if hasattr(r, "get_item")]
        images = [v for v in names if v.word("DirectoryRecordType") == "IMAGE"]
        paths = ["/".join(str(w) for w in _strings(v)) for v in images]
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged sequence raises anything
        raise InputError(f"{part}: its records cannot be read ({because(error)}); give the folder instead") from error
    root = part.path.parent
    for name in paths:
        file = _inside(root, name)
        if file is None:
            content.absent.append(name)
        else:
            content.dicom.append(Part(file))
    if not content.dicom:
        raise InputError(f"{part}: none of its {len(paths)} images is there; give the folder that holds the series")
    return content


def _strings(values: Values) -> tuple[str, ...]:
    return values.words("ReferencedFileID")


def _inside(root: Path, name: str) -> Path | None:
    """The file of a DICOMDIR's entry: capitals there, often small letters on disk. Never outside `root`."""
    folder = root
    for step in name.split("/"):
        if step in ("", ".", ".."):
            return None
        try:
            folder = next((p for p in folder.iterdir() if p.name.upper().split(";")[0] == step), None)
        except OSError:
            return None
        if folder is None:
            return None
    return folder if folder.is_file() else None
