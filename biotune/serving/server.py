"""A uvicorn server that hangs up on those who stall, and ends in order."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from types import FrameType
from typing import TYPE_CHECKING, Final

import click
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from biotune.serving.memory import return_freed_memory

if TYPE_CHECKING:
    from biotune.serving.app import Service

IDLE_SECONDS: Final = 10.0
"""A connection is closed if for so long no whole request head comes, or nobody reads the answer."""

CONNECTIONS: Final = 1000
"""More are answered 503; a process may usually have 1,024 files open."""

FINISH_SECONDS: Final = 8
"""For requests to be answered after the end was asked for; Docker kills after ten."""


class _Protocol(H11Protocol):
    """uvicorn waits without end for the head of a connection's request, and for its reader."""

    _headless: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def _expect_head(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering and self._headless is None:
            self._headless = self.loop.call_later(IDLE_SECONDS, self.transport.close)
        elif answering and self._headless is not None:
            self._headless.cancel()
            self._headless = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(IDLE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._headless, self._unread):
            if timer is not None:
                timer.cancel()


class _Server(uvicorn.Server):
    """Says where it listens; a signal is the normal end, after what was accepted is answered."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain: float) -> None:
        super().__init__(config)
        self._app, self._drain = app, drain
        self._end = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would raise the signal again at the end, and so change the exit code.
        service: Service = self._app.state.service
        if service.draining and sig == signal.SIGINT:
            self.force_exit = True
        service.draining = True
        wait = self._drain if sig == signal.SIGTERM else 0.0
        self._end = min(self._end, time.monotonic() + wait)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or time.monotonic() >= self._end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            click.echo(f"http://{f'[{host}]' if ':' in host else host}:{port}", err=True)


def serve(app: FastAPI, host: str, port: int, drain: float) -> None:
    """Answer requests until a signal comes.

    Args:
        app: of :func:`biotune.serving.app.create_app`.
        host: address to listen at.
        port: to listen at; 0 for any that is free.
        drain: seconds after SIGTERM in which new requests are still answered, while ``/readyz``
            says 503, so that a load balancer stops sending them.

    Raises:
        OSError: if it cannot listen there.
    """
    return_freed_memory()
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=FINISH_SECONDS,
    )
    _Server(config, app, drain).run(sockets=[_listen(host, port)])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, for asyncio sends at once (TCP_NODELAY) only on sockets that say TCP;
    # else each answer waits 40 ms for the client's acknowledgement of its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen at {host}, port {port} ({error.strerror}): choose another --host or "
            "--port"
        ) from error
    return listener
