"""The scanner's own image stream: a server of the MRD protocol (ISMRMRD) that gives every series back, and one more.

A client sends a configuration, an XML header, images and CLOSE; it gets its own images back, byte for byte, then the
derived ones, then CLOSE. Nothing derived is sent before all of it is there; where something fails, the images still
go back, with a line that says what failed.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Any

from mrisr import __version__
from mrisr.errors import InputError, MrisrError, UsageError, because
from mrisr.io import mrd as images_of
from mrisr.io.mrd import MrdImage, Stack
from mrisr.serve import mrd_wire as wires
from mrisr.serve.budget import Budget
from mrisr.serve.mrd_wire import Limits, Vanished, Wire
from mrisr.serve.queue import JobQueue, Progress, Ticket

LOG = logging.getLogger("mrisr.serve.mrd")
OWN_CONFIG = ("mrisr", "")
LAST_SERIES = 0xFFFF
TURNED_AWAY = 64  # connections over the limit that are told so; beyond that they are closed

# upscale(volume, progress, **options) -> (Volume, Info)
Upscale = Callable[..., tuple[Any, Any]]


@dataclass
class Settings:
    """connections: served at once. hold: bytes of images, of all connections. job: seconds that a client waits for
    its result. beat: seconds between signs of life. originals: whether they are sent back unless a client says else."""

    connections: int = 8
    hold: int = 4 << 30
    waiting: int = 8
    job: float = 3600.0
    beat: float = 5.0
    originals: bool = True
    limits: Limits = field(default_factory=Limits)


@dataclass
class Request:
    """What one client sent."""

    images: list[MrdImage] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    originals: bool = True
    options: dict[str, Any] = field(default_factory=dict)


class Server(socketserver.ThreadingTCPServer):
    """Serves until `shutdown`; `stop` ends jobs and connections in order.

    Args:
        address: (host, port); port 0 takes a free one, then `server_address` has it.
        upscale: (volume, progress, **options) -> (result, info): `mrisr.api.upscale` with the server's options.

    Raises UsageError where the address cannot be had.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], upscale: Upscale, settings: Settings | None = None) -> None:
        images_of.load_ismrmrd()
        self.settings = settings or Settings()
        self.upscale = upscale
        self.budget = Budget(self.settings.hold)
        self.jobs = JobQueue(self.settings.waiting)
        self.stopping = threading.Event()
        self._seats = threading.BoundedSemaphore(self.settings.connections)
        self._doors = threading.BoundedSemaphore(self.settings.connections + TURNED_AWAY)
        self._open: set[threading.Thread] = set()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(address, None)
        except OSError as error:
            self.jobs.stop(1.0)
            raise UsageError(
                f"--host {address[0]} --port {address[1]}: cannot listen there ({error.strerror or error}); choose "
                "another port, or end the program that has it"
            ) from error

    def verify_request(self, request: socket.socket, client_address: Any) -> bool:
        return self._doors.acquire(blocking=False)

    def process_request_thread(self, request: socket.socket, client_address: Any) -> None:
        self._open.add(threading.current_thread())
        try:
            if self._seats.acquire(blocking=False):
                try:
                    Session(self, request).run()
                finally:
                    self._seats.release()
            else:
                _turn_away(request, self.settings)
        finally:
            request.close()
            self._doors.release()
            self._open.discard(threading.current_thread())

    def stop(self, grace: float = 10.0) -> None:
        """Take nothing more, hand back what was not finished, and close; at most about `grace` s."""
        until = time.monotonic() + grace
        self.stopping.set()
        self.shutdown()
        self.server_close()
        self.jobs.stop(grace / 2)
        for thread in list(self._open):
            thread.join(max(0.0, until - time.monotonic()))


def _turn_away(request: socket.socket, settings: Settings) -> None:
    wire = Wire(request, Budget(0), settings.limits)
    LOG.warning("turned away: %d connections are being served", settings.connections)
    try:
        wire.send_text("ERR", f"{settings.connections} connections are being served; try again later")
        wire.send_close()
    except Vanished:
        pass  # it has left by itself
    wire.hang_up()


class Session:
    """One connection from its first byte to its last."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server, self.settings = server, server.settings
        self.wire = Wire(sock, server.budget, server.settings.limits)
        self.request = Request(originals=server.settings.originals)

    def run(self) -> None:
        """Serve the connection; every ending is one line in the log, and on the wire where somebody listens."""
        try:
            try:
                self._receive()
                self._answer()
            except MrisrError as error:
                LOG.error("%s", error)
                self.wire.send_text("ERR", str(error))
            except Vanished:
                raise
            except Exception as error:  # noqa: BLE001 - the outermost frame of a connection: the server lives on
                LOG.exception("a bug in mrisr: please report it with the lines below")
                self.wire.send_text("ERR", f"a bug in mrisr ({type(error).__name__}); see the server's log")
            self.wire.send_close()
        except Vanished as error:
            count = len(self.request.images)
            LOG.error("the client vanished (%s) after %d images; nothing is kept of it", error, count)
        finally:
            self.wire.release()
            self.wire.hang_up()

    def _receive(self) -> None:
        waveforms = 0
        while (message := self.wire.next()).kind != wires.CLOSE:
            if message.kind == wires.IMAGE:
                self.request.images.append(message.content)
                if len(self.request.images) > self.settings.limits.images:
                    raise InputError(f"more than {self.settings.limits.images} images in one stream; send fewer")
            elif message.kind == wires.HEADER:
                self._header(message.content)
            elif message.kind in (wires.TEXT, wires.CONFIG_TEXT):
                self._configure(message.content)
            elif message.kind == wires.CONFIG_FILE and message.content not in OWN_CONFIG:
                name = "".join(c for c in message.content if c.isprintable())[:64]
                self._warn(f"configuration {name!r} is not known here; mrisr does what it was started for")
            waveforms += message.kind == wires.WAVEFORM
        if waveforms:
            self._warn(f"{waveforms} waveforms are not used and not sent back")

    def _header(self, text: str) -> None:
        try:
            self.request.meta = images_of.facts(text)
        except InputError as error:
            self._warn(str(error))

    def _configure(self, text: str) -> None:
        """Parameters of OpenRecon's JSON: {"parameters": {"sendoriginal": ..., "voxelsize": ...}}."""
        try:
            values = json.loads(text) if text.strip() else {}
            parameters = values.get("parameters", {})
            by_name = {str(name).lower(): value for name, value in parameters.items()}
        except (ValueError, AttributeError, RecursionError):
            self._warn("a text that is no JSON object with parameters is not used")
            return
        for name, value in by_name.items():
            if name == "sendoriginal":
                self.request.originals = str(value).strip().lower() in ("true", "1", "yes")
            elif name == "voxelsize":
                self.request.options["voxel_size"] = _millimetres(value)
            elif name not in ("config", "customconfig"):
                self._warn(f"parameter {name[:64]!r} is not known here")

    def _warn(self, line: str) -> None:
        LOG.warning("%s", line)
        self.wire.send_text("WRN", line)

    def _answer(self) -> None:
        images = self.request.images
        if not images:
            self.wire.send_text("DBG", "no images came, none are sent")
            return
        LOG.info("%d images came", len(images))
        try:
            derived, notes = self._derive()
        except Vanished:
            raise
        except Exception:  # whatever it is, `run` says it
            self._give_back()
            raise
        self._give_back()
        for note in notes:
            self._warn(note)
        for image in derived:
            self.wire.send_image(image)
        LOG.info("%d images sent back, %d derived", len(images) if self.request.originals else 0, len(derived))

    def _give_back(self) -> None:
        if self.request.originals:
            for image in self.request.images:
                self.wire.send_image(image)

    def _derive(self) -> tuple[list[MrdImage], list[str]]:
        """All derived images, and what the user has to know; nothing is sent before this has ended."""
        stacks = images_of.stacks(self.request.images, self.request.meta)
        rest = len(self.request.images) - sum(len(stack.images) for stack in stacks)
        notes = [f"{rest} images that are no magnitude are not upscaled"] if rest else []
        if not stacks:
            raise InputError("no magnitude image came; nothing can be upscaled")
        ticket = self.server.jobs.offer(lambda progress: self._upscale(stacks, notes, progress))
        if ticket is None:
            why = "the server is stopping" if self.server.stopping.is_set() else "too many series wait already"
            raise InputError(f"{why}; send the series again later")
        return self._wait(ticket), notes

    def _upscale(self, stacks: list[Stack], notes: list[str], progress: Progress) -> list[MrdImage]:
        derived, series = [], max(image.header.image_series_index for image in self.request.images)
        for stack in stacks:
            series += 1
            if series > LAST_SERIES:
                raise InputError(f"no series number is free: the stream holds at most {LAST_SERIES}, and that one came")
            result, info = self.server.upscale(stack.volume, progress, **self.request.options)
            images, clipped = images_of.to_images(result, stack, series, _attributes(stack, result, info))
            notes += [f"{stack.volume.name}: {text}" for text in info.warnings]
            if clipped:
                notes.append(f"{stack.volume.name}: {clipped} of {result.data.size} voxels clipped to the integer type")
            derived += images
        return derived

    def _wait(self, ticket: Ticket) -> list[MrdImage]:
        """The result; meanwhile a sign of life now and then, which also finds out when nobody listens any more."""
        until = time.monotonic() + self.settings.job
        try:
            while True:
                try:
                    return ticket.future.result(timeout=self.settings.beat)
                except NotYet:
                    if ticket.future.done():  # the job itself raised a TimeoutError
                        raise
                if time.monotonic() > until:
                    raise InputError(f"the result took longer than {self.settings.job:g} s; see --job-seconds")
                self.wire.send_text("DBG", f"{ticket.stage}, {100 * ticket.fraction:.0f} %")
        except CancelledError:
            raise InputError("the server is stopping; send the series again later") from None
        except (MrisrError, Vanished):
            raise
        except Exception as error:
            LOG.exception("a job failed")
            raise InputError(f"the series cannot be upscaled ({type(error).__name__}: {because(error)})") from error
        finally:
            ticket.cancel()


def _millimetres(value: Any) -> float:
    try:
        size = float(value)
    except (TypeError, ValueError, OverflowError):
        size = -1.0
    if not 0.1 <= size <= 10:
        raise InputError(f"parameter voxelsize: expected 0.1 to 10 mm, found {str(value)[:32]!r}")
    return size


def _attributes(stack: Stack, result: Any, info: Any) -> dict[str, Any]:
    """What a reader of the derived images has to see, under the names that scanners turn into DICOM."""
    low, high = (float(v) for v in _window(result))
    size = " x ".join(f"{v:.3g}" for v in result.voxel_size)
    return {
        "DataRole": "Image",
        "ImageProcessingHistory": ["MRISR", "RESEARCH_SYNTH"],
        "ImageType": "DERIVED\\SECONDARY\\M\\RESAMPLED",
        "SequenceDescriptionAdditional": "RESEARCH_SYNTH",
        "ImageComments": f"mrisr {__version__}, model {info.model}, {size} mm: partly synthesised; not for diagnosis",
        "WindowCenter": f"{(low + high) / 2:.6g}",
        "WindowWidth": f"{max(high - low, 1.0):.6g}",
        "MrisrModel": str(info.model),
        "MrisrWeights": str(info.weights),
    }


def _window(result: Any) -> tuple[float, float]:
    import numpy as np

    return tuple(np.percentile(result.data[::2, ::2, ::2], (1, 99)))
