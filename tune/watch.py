"""The HTML report on a web server on loopback, made anew while a sweep writes its store."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from gcsr import InvalidInputError
from tune.filesystem import one_line
from tune.reporting import Report
from tune.store import Store

__all__ = ["serve"]

_AGAIN_SECONDS = 3


def serve(store: Store, title: str, port: int, *, on_ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        store: the sweep's output; files that are half-written or damaged are passed over.
        title: if the store does not name its experiment.
        port: on 127.0.0.1; 0 takes a free one.
        on_ready: called with the URL.

    Raises:
        InvalidInputError: the port cannot be taken.
    """
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(_Page(store, title), port, on_ready))


class _Page:
    """The page of the store's present state; made once for each state."""

    def __init__(self, store: Store, title: str) -> None:
        self._store, self._title = store, title
        self._version, self._text = "", ""
        self._lock = asyncio.Lock()

    async def version(self, request: web.Request) -> web.Response:
        return web.Response(text=await asyncio.to_thread(self._state))

    async def page(self, request: web.Request) -> web.Response:
        async with self._lock:
            version = await asyncio.to_thread(self._state)
            if version != self._version:
                self._text = await asyncio.to_thread(self._made, version)
                self._version = version
        return web.Response(text=self._text, content_type="text/html")

    def _state(self) -> str:
        files = [(info.path, info.size, str(info.mtime)) for info in self._store.files("trials")]
        return hashlib.sha256(repr(files).encode()).hexdigest()[:16]

    def _made(self, version: str) -> str:
        return Report(self._store, fallback_title=self._title).render("html", version=version)


@web.middleware
async def _asked_by_its_own_name(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests to another host: a page of somebody whose name leads here could read the report through them."""
    if request.url.host not in ("127.0.0.1", "localhost"):
        raise web.HTTPForbidden
    return await handler(request)


@web.middleware
async def _unless_unreadable(request: web.Request, handler: Handler) -> web.StreamResponse:
    """In place of what a store that cannot be read at the moment would show, one line that tries again by itself."""
    try:
        return await handler(request)
    except (OSError, InvalidInputError) as error:
        text = f"The store cannot be read at the moment: {one_line(error)}"
        return web.Response(status=503, text=text, headers={"Refresh": f"{_AGAIN_SECONDS}"})


def _application(page: _Page) -> web.Application:
    application = web.Application(middlewares=[_asked_by_its_own_name, _unless_unreadable])
    application.add_routes([web.get("/", page.page), web.get("/version", page.version)])
    return application


async def _serve(page: _Page, port: int, on_ready: Callable[[str], None]) -> None:
    runner = web.AppRunner(_application(page), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError as error:
        await runner.cleanup()
        raise InvalidInputError(f"port: {port} cannot be taken: {error.strerror}; expected a free one, or 0") from None
    address = runner.addresses[0]
    on_ready(f"http://127.0.0.1:{address[1]}/")
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
