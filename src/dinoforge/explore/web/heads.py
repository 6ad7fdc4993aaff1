"""A deadline for the head of a request: whoever begins one and never ends it holds a connection, and there are only so many.

What comes after the head is watched by ``guard.py``, and the time between two requests by uvicorn.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n\r\n"


class _Hurried(H11Protocol):
    """A connection."""

    patience: ClassVar[float]
    _deadline: asyncio.TimerHandle | None = None
    _begun = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._begun = True
        if self.conn.their_state is not h11.IDLE:
            self._go_on()
        elif self._deadline is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_on()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(self.patience, self._hang_up)

    def _go_on(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hang_up(self) -> None:
        if self.transport.is_closing():
            return
        # A browser that connects beforehand would take an answer for the one to what it asks later.
        if self._begun:
            told = f"dinoforge: the head was not here after {self.patience:g} seconds.\n"
            self.transport.write(_LATE + told.encode())
        self.transport.close()


def hurried(patience: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which waits so many seconds for the head of a request from its first byte on, of the first one from
    the connection on; then it answers 408, or nothing where nothing came, and hangs up."""
    return type("Hurried", (_Hurried,), {"patience": patience})
