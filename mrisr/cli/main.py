"""Entry point of the ``mrisr`` command: parse, run one command, turn every ending into an exit code."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from mrisr import __version__
from mrisr.cli import (
    bench,
    bids,
    correct,
    demo,
    distill,
    doctor,
    evaluate,
    export,
    pack,
    serve,
    simulate,
    train,
    upscale,
)
from mrisr.cli.loading import own_process
from mrisr.errors import NO_ROOM, InputError, MrisrError, OutputError, UsageError, because, to_do

COMMANDS = (upscale, bids, correct, simulate, demo, evaluate, pack, train, distill, export, serve, bench, doctor)

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NO_ROOM_TO_LOAD = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")
EXIT_BUG = 1
EXIT_MEMORY = 5
EXIT_INTERRUPTED = 130

# docs/commands.md prints this table too, written by mrisr/cli/reference.py.
EXIT_CODES = {
    0: "done",
    1: "a bug in mrisr: please report the traceback",
    2: "the command line is wrong",
    3: "the input cannot be used (file, array or geometry)",
    4: "the output cannot be written, or exists and --force was not given",
    5: "the memory budget, or the machine's memory, does not suffice",
    6: "the model cannot be used (weights, preset or bundle)",
    7: "the device, engine or operator backend asked for cannot run",
    8: "training failed (configuration, data, or a loss that is not a number)",
    9: "some of several scans failed (failures.json says which, and why)",
    130: "interrupted (Ctrl-C or SIGTERM); no unfinished file is left behind",
}


class Parser(argparse.ArgumentParser):
    """argparse with mrisr's one-line errors in place of a usage dump."""

    def error(self, message: str) -> None:
        """Raise :class:`UsageError`; main() prints it and exits with 2."""
        raise UsageError(f"{message} (see '{self.prog} --help')")


def build_parser() -> Parser:
    """The complete parser: every command and option, nothing heavy imported."""
    table = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser = Parser(
        prog="mrisr",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Sharper brain MRI on a finer grid. Research software, not a medical device.",
        epilog=f"exit codes:\n{table}\n\n'mrisr COMMAND --help' explains one command.",
    )
    parser.add_argument("--version", action="version", version=f"mrisr {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mrisr`` with `argv` (default: the process's own arguments) and return its exit code."""
    _open_standard_streams()
    # numpy multiplies only small matrices here, and the threads of its OpenBLAS (0.3.31) were twice seen to
    # wait for each other for ever on a busy machine. PyTorch and OpenVINO have threads of their own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        with _interrupt_on_sigterm(), _one_line_warnings():
            _look_at_folder()
            args = build_parser().parse_args(argv)
            return _by_name(args.command).run(args)
    except SystemExit as ending:  # argparse after --help and --version
        return ending.code if isinstance(ending.code, int) else 0
    except MrisrError as error:
        _say("error", error)
        return error.exit_code
    except KeyboardInterrupt:
        _say("error", "interrupted")
        return EXIT_INTERRUPTED
    except MemoryError as error:
        _say("error", f"out of memory ({error or 'allocation failed'}): give --memory or a coarser voxel size")
        return EXIT_MEMORY
    except BrokenPipeError:
        # The reader of our stdout (head, less) went away: not an error, but the interpreter would
        # complain once more while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in NO_ROOM:
            return _bug(error)
        what = to_do(error) if error.errno in NO_ROOM else "check its name and permissions"
        _say("error", f"{error.filename or 'output'}: {error.strerror}; {what}")
        return OutputError.exit_code if error.errno in (*NO_ROOM, errno.EROFS) else InputError.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "mrisr").split(".")[0] == "mrisr":
            return _bug(error)
        _say("error", f"needs {error.name}, which is not installed; install what mrisr depends on: pip install .")
        return InputError.exit_code
    except ImportError as error:
        if not any(words in str(error) for words in NO_ROOM_TO_LOAD):
            return _bug(error)
        _say("error", f"out of memory ({because(error)}): a limit (ulimit -v) leaves no room for libraries; raise it")
        return EXIT_MEMORY
    except Exception as error:  # noqa: BLE001 - the outermost frame: what reaches it is a bug by definition
        return _bug(error)


def _bug(error: Exception) -> int:
    traceback.print_exc()
    _say("error", f"{type(error).__name__}: {error} (this is a bug: please report it with the lines above)")
    return EXIT_BUG


def _open_standard_streams() -> None:
    """Open on nothing what the caller has closed: else the first file that is opened takes its number, and whoever
    writes to the terminal writes into that file."""
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def _look_at_folder() -> None:
    """Whether the working folder is still there: libraries end the process in words of their own where it is not."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(f"working folder: {error.strerror}; change into one that is there") from error


def _by_name(name: str):
    return next(command for command in COMMANDS if command.__name__.rsplit(".", 1)[-1] == name)


def _say(kind: str, message: object) -> None:
    try:
        line = CONTROL.sub("?", " ".join(str(message).split()))  # names may hold what terminals act on
        print(f"mrisr: {kind}: {line}", file=sys.stderr, flush=True)
    except OSError:  # nobody can be told; the exit code still tells
        return


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end a run the way Ctrl-C does, so that clean-up code runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print each different warning once, as one ``mrisr: warning:`` line."""
    texts: set[str] = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        text = str(message)
        if text not in texts:
            texts.add(text)
            _say("warning", text)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def entry() -> NoReturn:
    """The ``mrisr`` program: `main`, then leave with its exit code."""
    own_process()
    code = main()
    try:
        sys.stdout.flush()
    except OSError as error:  # the place where stdout goes is full: what was to be said is lost
        _say("error", f"stdout: {error.strerror}; {to_do(error)}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = code or OutputError.exit_code
    if code == EXIT_INTERRUPTED:
        # CPython remembers a KeyboardInterrupt that passed through exec() of a string (dataclasses do that while they
        # are imported), even if it was handled, and ends the process by SIGINT instead of with the code it is given.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
