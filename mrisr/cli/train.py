"""``mrisr train``: train a network from a configuration file or a preset."""

from __future__ import annotations

import argparse


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("train", help="train a network")
    parser.add_argument("--config", metavar="JSON", help="training configuration; options below override it")


def run(args: argparse.Namespace) -> int:
    """Run the command; raises MrisrError, returns 0."""
    raise NotImplementedError
