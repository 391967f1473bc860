"""The door of a site (`mrisr.serve.site`) for browsers: a page to try it on.

Starlette alone is enough for this: the body of an upload is the file itself, so that its length is bounded while it
comes, and no form has to be parsed.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mrisr.errors import UsageError
from mrisr.io import nifti
from mrisr.report import render
from mrisr.serve.site import RESULT, Refusal, Settings, Site, Upscale

__all__ = ["Server", "application"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self' data: blob:; font-src 'self' data:; worker-src blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def application(site: Site, hosts: Sequence[str] | None = None) -> Any:
    """The ASGI application of a site. `hosts`: names that a browser may call it by; None: any.

    A page of another site can neither call it by a name of its own (the Host header is checked) nor upload to it (the
    type of the body makes browsers ask first, and nothing allows it).
    """
    from starlette.applications import Starlette
    from starlette.routing import Route

    routes = [
        Route(path, _answering(make(site), hosts), methods=[method])
        for method, path, make in (
            ("GET", "/", _home),
            ("POST", "/scans", _upload),
            ("GET", "/scans/{key}", _state),
            ("DELETE", "/scans/{key}", _remove),
            ("GET", "/scans/{key}/{file:path}", _file),
        )
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return app


def _answering(work: Callable[[Any], Any], hosts: Sequence[str] | None) -> Callable[[Any], Any]:
    """A handler whose refusals are JSON of one line, and whose answers have our headers."""
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response

    async def handler(request: Any) -> Any:
        try:
            if hosts is not None and urlsplit(f"//{request.headers.get('host', '')}").hostname not in hosts:
                raise Refusal(421, f"this service is called by {', '.join(hosts)} only")
            response = await work(request)
        except Refusal as refusal:
            response = JSONResponse({"error": str(refusal)}, refusal.status)
            if refusal.status == 503:
                response.headers["Retry-After"] = "60"
            if refusal.status in (408, 413, 415, 422, 503, 507):  # the rest of the body is not read
                response.headers["Connection"] = "close"
        except ClientDisconnect:
            response = Response(status_code=400)
        response.headers.update(HEADERS)
        return response

    return handler


def _home(site: Site) -> Any:
    from starlette.responses import HTMLResponse

    limits = {"largest": site.settings.largest, "minutes": site.settings.keep / 60}
    text = render.page("web.html.j2", {**limits, "endings": ",".join(nifti.WRITE_ENDINGS)})

    async def home(request: Any) -> Any:
        return HTMLResponse(text)

    return home


def _upload(site: Site) -> Any:
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    async def upload(request: Any) -> Any:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/octet-stream":
            raise Refusal(415, "expected the file itself as the body, of type application/octet-stream")
        largest = site.settings.largest
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > largest:
            raise Refusal(413, _too_large(largest))
        job = site.begin(unquote(request.headers.get("x-file-name", "")))
        try:
            path = job.folder / f"upload{nifti.ending_of(Path(job.name))}"
            await _store(request.stream(), path, site.settings)
            await run_in_threadpool(site.accept, job, path)
        except BaseException:  # a client that went away too
            site.drop(job)
            raise
        return JSONResponse(job.account(), 202)

    return upload


async def _store(stream: AsyncIterator[bytes], path: Path, settings: Settings) -> None:
    """Write an upload as it comes. Raises Refusal: 413 once it is too long, 408 where it stops, 507 without room."""
    size = 0
    try:
        with open(path, "wb") as out:
            while True:
                try:
                    block = await asyncio.wait_for(anext(stream), settings.idle)
                except StopAsyncIteration:
                    return
                except asyncio.TimeoutError:
                    raise Refusal(408, f"nothing has come for {settings.idle:g} seconds; send it again") from None
                size += len(block)
                if size > settings.largest:
                    raise Refusal(413, _too_large(settings.largest))
                out.write(block)
    except OSError as error:
        raise Refusal(507, f"the service has no room for this ({error.strerror}); try again later") from error


def _state(site: Site) -> Any:
    from starlette.responses import JSONResponse

    async def state(request: Any) -> Any:
        return JSONResponse(site.job(request.path_params["key"]).account())

    return state


def _remove(site: Site) -> Any:
    from starlette.responses import Response

    async def remove(request: Any) -> Any:
        site.remove(request.path_params["key"])
        return Response(status_code=204)

    return remove


def _file(site: Site) -> Any:
    from starlette.responses import FileResponse, RedirectResponse

    async def file(request: Any) -> Any:
        job, name = site.job(request.path_params["key"]), request.path_params["file"]
        if name == "report/index.html":  # the page's way to all scans
            return RedirectResponse("../../../", 302)
        path = job.files.get(name)  # looked up, never joined: there is no way to another file
        if path is None or not path.is_file():
            raise Refusal(404, "no such file")
        if name == RESULT:
            ending = nifti.ending_of(Path(job.name)) or ""
            return FileResponse(path, filename=f"{job.name[: -len(ending)]}_mrisr.nii.gz")
        return FileResponse(path)

    return file


def _too_large(largest: int) -> str:
    return f"too large: at most {largest / 1e6:.0f} MB are taken here"


class Server:
    """The site on an address, in a thread of its own: `address` tells the port, `stop` ends all and wipes the folder.

    Raises UsageError where it cannot listen there.
    """

    def __init__(self, address: tuple[str, int], upscale: Upscale, settings: Settings | None = None) -> None:
        import uvicorn

        host, port = address
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise UsageError(
                f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); choose another port, "
                "or end the program that has it"
            ) from error
        self.address = self._socket.getsockname()[:2]
        self.site = Site(upscale, settings)
        app = application(self.site, LOOPBACK if host in LOOPBACK else None)
        quiet = dict(log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", **quiet))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Answer nobody more, cancel what runs, remove every file."""
        self._server.should_exit = True
        self._thread.join(timeout)
        self._socket.close()
        self.site.close(timeout)
