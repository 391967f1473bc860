"""``mrisr bids``: a BIDS App. A raw dataset in, a derivative dataset out."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrisr.cli import many
from mrisr.cli.cluster import add_cluster_options
from mrisr.cli.compute import (
    adapting,
    add_adapt_options,
    add_beside_options,
    add_compute_options,
    add_join_options,
    add_writing_options,
    check_beside,
    computing,
    joining,
)
from mrisr.cli.loading import load
from mrisr.cli.voice import add_voice_options, speaking
from mrisr.errors import UsageError


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "bids",
        help="a BIDS dataset in, a derivative dataset out",
        description="T1w, T2w, FLAIR and PDw images of a raw BIDS dataset, each on a finer grid, as a BIDS derivative. "
        "The same command again completes what is missing and writes nothing where nothing is. Level group writes the "
        "table of the report whose pages the participants' runs have made (--report; default: OUTPUT_DIR).",
    )
    parser.add_argument("bids_dir", metavar="BIDS_DIR", help="root of the raw dataset")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="root of the derivative dataset")
    parser.add_argument(
        "level", choices=("participant", "group"), help="participant: upscale; group: the table of a report"
    )
    for key in ("participant", "session"):
        parser.add_argument(
            f"--{key}-label", f"--{key}_label", nargs="+", metavar="L", help=f"these {key}s only (default: all)"
        )
    add_beside_options(parser, ("FOLDER",) * 3)
    add_writing_options(parser)
    parser.add_argument("--force", action="store_true", help="make everything anew")
    add_join_options(
        parser,
        "scans of one session that differ in acq-ax, acq-sag and acq-cor alone become one, desc-join (needs SimpleITK)",
    )
    add_adapt_options(parser, keep=False)
    add_voice_options(parser)
    add_compute_options(parser)
    add_cluster_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; raises MrisrError, returns 0, or 9 where some scans failed."""
    if args.no_sidecar:
        raise UsageError("--no-sidecar: BIDS derivatives have sidecars, and by them a rerun knows what is done")
    check_beside(args)
    options = {**computing(args), **joining(args), **adapting(args, several=args.join)}
    args.skip_existing = not args.force
    root, output = Path(args.bids_dir), Path(args.output_dir)
    with speaking(args) as voice:
        load("mrisr.batch.bids")
        from mrisr.batch import bids, pages
        from mrisr.batch.scans import Work

        labels = dict(participants=args.participant_label, sessions=args.session_label)
        scans = bids.find(root, output, options, join=args.join, **labels)
        if args.level == "group":
            count = pages.group(scans, Path(args.report or output), title=bids.title(root))
            voice.line(", ".join(f"{n} {state}" for state, n in count.items() if n))
            return 0
        for folder in filter(None, (args.preview, args.info, args.std)):
            bids.check_beside(root, output, Path(folder))
        bids.prepare(root, output)
        # One file per task of a cluster: tasks that each have a participant do not write over each other.
        name = "_".join(sorted({scan.name.split("/")[0] for scan in scans})) if args.participant_label else "all"
        failures = output / "logs" / f"failures_{name[:100]}.json"
        return many.run(args, Work(scans, output), many.settings(args, output, options), failures, voice)
