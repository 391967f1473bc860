"""``mrisr serve``: a service that takes scans and gives them back sharper, until it is stopped."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import mrisr
from mrisr.cli.options import add_run_options, positive_float, positive_int, use_threads
from mrisr.errors import UsageError

LOOPBACK = "127.0.0.1"


def add_parser(subparsers) -> None:
    """Add the command, its services and their options."""
    parser = subparsers.add_parser(
        "serve",
        help="take scans from a scanner or a PACS, give them back sharper",
        description="Run a service in the foreground until SIGTERM or Ctrl-C, which end it in order (exit code 0).",
    )
    doors = parser.add_subparsers(title="services", metavar="SERVICE", dest="service", required=True)
    _add_dicom(doors)
    _add_mrd(doors)
    _add_web(doors)


def _add_dicom(doors) -> None:
    parser = doors.add_parser(
        "dicom",
        help="a DICOM node",
        description="MR series by C-STORE in; a derived series of each to a peer. What came and was not yet sent is in "
        "--folder: a node that was killed goes on from there.",
    )
    _add_address(parser, 11112)
    parser.add_argument("--aet", type=_title, default="MRISR", metavar="AET", help="own AE title (default: MRISR)")
    parser.add_argument(
        "--send-to", required=True, metavar="AET@HOST:PORT", help="where derived series go, such as PACS@10.0.0.5:104"
    )
    parser.add_argument(
        "--folder",
        default="mrisr-node",
        metavar="DIR",
        help="what came and was not yet sent; readable by its owner only (default: mrisr-node)",
    )
    parser.add_argument(
        "--from", nargs="+", type=_title, default=[], dest="callers", metavar="AET", help="AE titles that may send"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--associations", type=positive_int, default=10, metavar="N", help="open at once (default: 10)")
    limits.add_argument("--hold", type=_size, default="4GB", metavar="SIZE", help="in reception (default: 4GB)")
    limits.add_argument(
        "--reserve", type=_size, default="1GB", metavar="SIZE", help="of the disk that stays free (default: 1GB)"
    )
    limits.add_argument("--waiting", type=positive_int, default=8, metavar="N", help="queued series (default: 8)")
    _add_seconds(limits, "--quiet-seconds", 10, "without a new image, after which a series is taken to be whole")
    _add_seconds(limits, "--patience-seconds", 600, "that half a series waits for a sender that broke off")
    _add_seconds(limits, "--idle-seconds", 60, "without a byte, before an association is ended")
    _add_model(parser)


def _add_mrd(doors) -> None:
    parser = doors.add_parser(
        "mrd",
        help="the scanner's image stream (ISMRMRD)",
        description="Images of the MRD protocol in; the same images out, and a derived series after them.",
    )
    _add_address(parser, 9002)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--connections", type=positive_int, default=8, metavar="N", help="served at once (default: 8)")
    limits.add_argument(
        "--hold", type=_size, default="4GB", metavar="SIZE", help="images of all connections, in memory (default: 4GB)"
    )
    limits.add_argument("--waiting", type=positive_int, default=8, metavar="N", help="series that wait (default: 8)")
    _add_seconds(limits, "--idle-seconds", 60, "without a byte, before a connection is closed")
    _add_seconds(limits, "--receive-seconds", 3600, "for all images of a connection")
    _add_seconds(limits, "--job-seconds", 3600, "for a result, waiting included")
    parser.add_argument(
        "--no-originals",
        action="store_true",
        help="do not send the images back that came (a client's parameter sendoriginal overrules this)",
    )
    _add_model(parser)


def _add_web(doors) -> None:
    parser = doors.add_parser(
        "web",
        help="a page to try it on, for a browser",
        description="A page that takes a scan (NIfTI or MGH) and gives its report and the result. One at a time; files "
        "lie in a private folder and go with the service. There is no login: whoever reaches the address may use it.",
    )
    _add_address(parser, 8080)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--largest", type=_size, default="512MB", metavar="SIZE", help="of an upload (default: 512MB)")
    limits.add_argument("--waiting", type=positive_int, default=2, metavar="N", help="scans that wait (default: 2)")
    _add_seconds(limits, "--keep-seconds", 3600, "that a result stays")
    _add_model(parser)


def _add_address(parser: argparse.ArgumentParser, port: int) -> None:
    parser.add_argument("--host", default=LOOPBACK, metavar="H", help=f"address to listen on (default: {LOOPBACK})")
    parser.add_argument("--port", type=_port, default=port, metavar="P", help=f"0: any free one (default: {port})")


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("what to compute")
    grid = model.add_mutually_exclusive_group()
    grid.add_argument(
        "--voxel-size", type=positive_float, nargs="+", metavar="MM", help="output voxel size, one number or three"
    )
    grid.add_argument("--factor", type=positive_float, nargs="+", metavar="F", help="or: times finer")
    model.add_argument("--model", default="base", metavar="M", help="name, .safetensors or bundle (default: base)")
    add_run_options(parser)


def _add_seconds(group, option: str, default: float, what: str) -> None:
    text = f"seconds {what} (default: {default:g})"
    group.add_argument(option, type=positive_float, default=float(default), metavar="S", help=text)


def _port(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port, 0 to 65535, found {text!r}")
    return value


def _title(text: str) -> str:
    if not 0 < len(text.strip()) <= 16 or not text.isascii() or not text.isprintable() or "\\" in text:
        raise argparse.ArgumentTypeError(f"expected an AE title of 1 to 16 ASCII characters, found {text!r}")
    return text.strip()


def _size(text: str) -> int:
    number = text.strip().upper().removesuffix("B")
    unit = {"K": 10**3, "M": 10**6, "G": 10**9}.get(number[-1:], 1)
    try:
        value = float(number.rstrip("KMG")) * unit
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and value >= 1):
        raise argparse.ArgumentTypeError(f"expected a size such as 4GB or 512MB, found {text!r}")
    return int(value)


def run(args: argparse.Namespace) -> int:
    """Run a service until it is told to stop; raises MrisrError, returns 0."""
    use_threads(args.threads)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("mrisr.serve").setLevel(logging.INFO)
    return {"dicom": _dicom, "mrd": _mrd, "web": _web}[args.service](args)


def _dicom(args: argparse.Namespace) -> int:
    from mrisr.serve import derive, dicom, dicom_send

    settings = dicom.Settings(
        aet=args.aet,
        quiet=args.quiet_seconds,
        patience=args.patience_seconds,
        associations=args.associations,
        timeout=args.idle_seconds,
        hold=args.hold,
        reserve=args.reserve,
        waiting=args.waiting,
        callers=tuple(args.callers),
    )
    peer, work = dicom_send.Peer.parse(args.send_to), partial(derive.derive, upscale=_upscale(args))
    node = dicom.Node((args.host, args.port), args.folder, peer, work, settings)
    _say(f"dicom as {args.aet} on {node.address[0]} port {node.address[1]}, to {peer}, folder {args.folder}")
    _until_stopped()
    node.stop()
    _say("stopped")
    return 0


def _mrd(args: argparse.Namespace) -> int:
    from mrisr.serve.mrd import Server, Settings
    from mrisr.serve.mrd_wire import Limits

    settings = Settings(
        connections=args.connections,
        hold=args.hold,
        waiting=args.waiting,
        job=args.job_seconds,
        originals=not args.no_originals,
        limits=Limits(idle=args.idle_seconds, receive=args.receive_seconds),
    )
    server = Server((args.host, args.port), _upscale(args), settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    _say(f"mrd on {server.server_address[0]} port {server.server_address[1]}")
    _until_stopped()
    server.stop()
    _say("stopped")
    return 0


def _web(args: argparse.Namespace) -> int:
    try:
        import starlette  # noqa: F401 - asked for before a model is loaded
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"serve web: needs starlette and uvicorn ({error}); install them: pip install '.[web]'"
        ) from error
    from mrisr.serve.site import Settings
    from mrisr.serve.web import Server

    settings = Settings(largest=args.largest, waiting=args.waiting, keep=args.keep_seconds)
    server = Server((args.host, args.port), _upscale(args), settings)
    host = f"[{server.address[0]}]" if ":" in server.address[0] else server.address[0]
    _say(f"web on http://{host}:{server.address[1]}/ (research software, not a medical device)")
    _until_stopped()
    server.stop()
    _say("stopped")
    return 0


def _upscale(args: argparse.Namespace) -> Callable[..., tuple[Any, Any]]:
    """`mrisr.upscale` with the command's options; the model is loaded here, before anybody can connect."""
    options = {
        "model": args.model,
        "device": args.device,
        "engine": args.engine,
        "memory": args.memory,
        "tile": args.tile,
        "threads": args.threads,
        "return_info": True,
    }
    for name in ("voxel_size", "factor"):
        values = getattr(args, name)
        if values is not None:
            options[name] = _one_or_three(f"--{name.replace('_', '-')}", values)

    options["model"] = mrisr.load_model(args.model)

    def upscale(volume: Any, progress: Callable[[str, float], None], **more: Any) -> tuple[Any, Any]:
        arguments = options | more
        if "voxel_size" in more:
            arguments.pop("factor", None)
        return mrisr.upscale(volume, progress=progress, **arguments)

    return upscale


def _one_or_three(option: str, values: list[float]) -> float | tuple[float, ...]:
    if len(values) not in (1, 3):
        raise UsageError(f"{option}: expected one number or three (one per axis), found {len(values)}")
    return values[0] if len(values) == 1 else tuple(values)


def _until_stopped() -> None:
    """Return at SIGTERM or Ctrl-C, which `main` turns into KeyboardInterrupt."""
    try:
        while True:
            threading.Event().wait(3600)
    except KeyboardInterrupt:
        return


def _say(line: str) -> None:
    print(f"mrisr serve: {line}", file=sys.stderr, flush=True)
