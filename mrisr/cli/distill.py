"""``mrisr distill``: teach a student what a teacher knows, in few steps."""

from __future__ import annotations

import argparse

from mrisr.cli.train import add_run, start


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "distill",
        help="teach a student what a teacher knows, in 1, 2 and 4 steps; the same command again goes on",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Distils a teacher's weights into a student, every stage in one run. Running the same command "
        "again resumes.",
        epilog="OUT receives weights.safetensors, config.json, last.pt (for resuming), log.jsonl.\n"
        "Many GPUs: torchrun --nproc-per-node N -m mrisr.cli.main distill ...",
    )
    parser.add_argument("--teacher", metavar="W", help="weights of the teacher, by name or path, of any preset")
    add_run(parser, "distill")


def run(args: argparse.Namespace) -> int:
    """Run the command; raises MrisrError, returns 0."""
    from mrisr.train.config import DISTILLATIONS

    return start(args, "distill", DISTILLATIONS, teacher=args.teacher)
