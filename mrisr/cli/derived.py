"""What ``mrisr upscale`` needs where a DICOM series comes in, and where a derived one goes out."""

from __future__ import annotations

import os
from pathlib import Path

from mrisr.errors import OutputError


def is_folder(source: str, output: str) -> bool:
    """Whether OUT names the folder of a derived series: DICOM comes in, and OUT is a folder, or has no ending."""
    from mrisr.io import dicom

    named = output.endswith(("/", os.sep)) or Path(output).is_dir() or not Path(output).suffix
    return named and dicom.is_dicom(source)


def read(args, *, into_folder: bool):
    """(the scan as a Volume, its DICOM Series or None), by IN, --series and --group."""
    from mrisr.io import dicom
    from mrisr.io.adapters import to_volume

    if not dicom.is_dicom(args.input):
        return to_volume(args.input, series=args.series, group=args.group)[0], None
    if into_folder:
        dicom.check_folder(args.output, force=args.force)
        _check_apart(args)
    series = dicom.find(args.input, series=args.series, group=args.group)
    return series.volume(), series


def _check_apart(args) -> None:
    """The folder of a derived series holds nothing else, and lies not where the originals are read from."""
    folder = Path(os.path.realpath(args.output))
    if Path(os.path.realpath(args.input)) == folder:
        raise OutputError(f"{args.output}: is the folder of the originals; give another, they stay untouched")
    for option, path in (("--info", args.info), ("--preview", args.preview), ("--std", args.std)):
        if path is not None and Path(os.path.realpath(path)).parent == folder:
            raise OutputError(f"{path}: {option} would lie in the folder of the derived series; put it beside")
