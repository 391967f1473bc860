"""Options of the commands that can give their scans to a cluster."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mrisr.cli.options import positive_int
from mrisr.errors import UsageError

if TYPE_CHECKING:
    from mrisr.batch.launch import Cluster


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add --cluster and what belongs to it."""
    group = parser.add_argument_group("on several machines (extra cluster)")
    group.add_argument(
        "--cluster",
        metavar="WHERE",
        help="local: processes of this machine, one per GPU or per --worker-cores; slurm: a job each; or the address "
        "of a dask scheduler, tcp://HOST:PORT or tls://HOST:PORT",
    )
    group.add_argument(
        "--workers",
        type=positive_int,
        metavar="N",
        help="at most so many (default: local, what there is room for; slurm, a job a scan, at most 100)",
    )
    group.add_argument("--worker-cores", type=positive_int, metavar="N", help="cores of a worker (default: 4)")
    group.add_argument(
        "--worker-memory",
        metavar="SIZE",
        help="memory of a worker, such as 8GB; one that takes more is ended (default: local, its part; slurm, 8GB)",
    )
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="WORDS",
        help='options for sbatch, such as "--partition=gpu --gres=gpu:1 --time=4:00:00"',
    )


def of_arguments(args: argparse.Namespace, folder: Path) -> Cluster | None:
    """What --cluster and its companions say; None without it. Raises UsageError."""
    companions = {"--workers": args.workers, "--worker-cores": args.worker_cores, "--worker-memory": args.worker_memory}
    companions["--sbatch"] = args.sbatch or None
    if args.cluster is None:
        stray = next((option for option, value in companions.items() if value is not None), None)
        if stray is not None:
            raise UsageError(f"{stray}: needs --cluster")
        return None
    from mrisr.batch.launch import Cluster
    from mrisr.infer.memory import parse_budget

    if args.worker_memory is not None:
        parse_budget(args.worker_memory)
    if args.memory is not None and args.worker_memory is None and args.cluster == "slurm":
        raise UsageError("--memory: is the network's; give --worker-memory too, which is the job's")
    try:
        directives = tuple(word for words in args.sbatch for word in shlex.split(words))
    except ValueError as error:
        raise UsageError(f"--sbatch: {error}") from error
    return Cluster(
        args.cluster,
        workers=args.workers,
        cores=args.worker_cores,
        memory=args.worker_memory,
        directives=_lines(directives),
        logs=folder / "logs",
    )


def _lines(words: tuple[str, ...]) -> tuple[str, ...]:
    """ "-p", "gpu" is one line for sbatch."""
    lines: list[str] = []
    for word in words:
        if word.startswith("-") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return tuple(lines)
