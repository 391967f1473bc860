"""``mrisr train``: train a network, or go on with a run that was interrupted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mrisr.cli.options import add_threads, positive_int, use_threads
from mrisr.errors import InputError, OutputError, UsageError


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "train",
        help="train a network; the same command again goes on where it stopped",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Trains on scans and synthetic volumes. Running the same command again resumes.",
        epilog="OUT receives weights.safetensors, config.json, last.pt (for resuming), log.jsonl.\n"
        "Many GPUs: torchrun --nproc-per-node N -m mrisr.cli.main train ...",
    )
    add_run(parser, "base")


def add_run(parser: argparse.ArgumentParser, config: str) -> None:
    """Add what every kind of training run takes; `config` is the default preset."""
    parser.add_argument(
        "--config", default=config, metavar="C", help=f"preset (see --list) or JSON file (default: {config})"
    )
    parser.add_argument("--init", metavar="W", help="weights to start from, by name or path, of the same preset")
    parser.add_argument(
        "--data", nargs="+", metavar="PATH", help="folders of NIfTI scans, scans, or packs (mrisr pack)"
    )
    parser.add_argument(
        "--hold-out", nargs="+", metavar="NAME", help="file name prefixes kept for validation (whole people)"
    )
    parser.add_argument("--out", metavar="OUT", help="folder of the run (made if missing)")
    parser.add_argument("--steps", type=positive_int, metavar="N", help="optimiser steps; overrides the config")
    parser.add_argument("--seed", type=int, metavar="S", help="overrides the config")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done as JSON, then stop")
    parser.add_argument("--list", action="store_true", help="print the presets as JSON, then stop")
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; raises MrisrError, returns 0."""
    from mrisr.train.config import CONFIGS

    return start(args, "train", CONFIGS)


def start(args: argparse.Namespace, command: str, presets: dict, **overrides) -> int:
    """List, plan or run a configuration of `presets`; `overrides` are fields that the command alone has."""
    from mrisr.train.config import load_config

    if args.list:
        print(json.dumps({name: json.loads(config.to_json()) for name, config in presets.items()}, indent=2))
        return 0
    config = load_config(
        args.config,
        presets,
        data=None if args.data is None else tuple(args.data),
        hold_out=None if args.hold_out is None else tuple(args.hold_out),
        init=args.init,
        steps=args.steps,
        seed=args.seed,
        **overrides,
    )
    if not args.dry_run and args.out is None:
        raise UsageError(f"{command}: expected --out, the folder of the run (or --dry-run)")
    use_threads(args.threads)
    from mrisr.train.loop import plan, train

    if args.dry_run:
        print(json.dumps(plan(config), indent=2))
        return 0
    try:
        import accelerate  # noqa: F401 - asked for here, so that a missing extra costs one line
    except ImportError as error:
        raise InputError(f"{command}: needs accelerate ({error}); install it: pip install '.[train]'") from error
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    train(config, out)
    return 0
