"""``mrisr pack``: training scans in one small file that needs neither nibabel nor time to load."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mrisr.errors import UsageError
from mrisr.io.atomic import check_target


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "pack",
        help="put scans into one small file for training elsewhere",
        description="Decodes, scales and quantises scans (to an eighth of their noise) into one file, which --data of "
        "`mrisr train` and `mrisr distill` takes, without nibabel. A scan that cannot be read is named and left out.",
    )
    parser.add_argument("scans", nargs="+", metavar="SCANS", help="folders of NIfTI scans, or scans")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the pack, .pack")
    parser.add_argument(
        "--licence", nargs="+", default=[], metavar="L", help="NAME for all scans, or PREFIX=NAME for those so named"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Run the command; raises MrisrError, returns 0."""
    from mrisr.data.pack import LARGEST, PACK_SUFFIX, describe, write_pack
    from mrisr.data.sources import find_scans, load_volumes

    output = Path(args.output)
    if output.suffix != PACK_SUFFIX:
        raise UsageError(f"{output}: the name of a pack ends in {PACK_SUFFIX}")
    check_target(output, force=args.force)
    paths = [path for source in args.scans for path in find_scans(source)]
    size = write_pack(output, load_volumes(paths), licences(args.licence), force=args.force)
    for entry in describe(output):
        voxel = " x ".join(f"{v:.2f}" for v in entry["voxel_size"])
        print(f"{entry['name']}  {voxel} mm  licence: {entry['licence']}")
    print(f"{output}: {size / 1e6:.1f} MB")
    if size > LARGEST:
        print(f"mrisr: larger than {LARGEST / 1e6:.0f} MB; pack fewer scans where size matters", file=sys.stderr)
    return 0


def licences(words: list[str]) -> dict[str, str]:
    """Beginning of a scan's name ("": any) -> licence."""
    table = {}
    for word in words:
        prefix, equals, name = word.rpartition("=")
        if not name or (equals and not prefix):
            raise UsageError(f"--licence: expected NAME or PREFIX=NAME, found {word!r}")
        table[prefix] = name
    return table
