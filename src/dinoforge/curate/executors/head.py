"""Looks after the head of a cluster, whose library would wait for it, or end this process, when it is gone."""

from __future__ import annotations

import socket
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from threading import Event, Thread
from typing import Any

_LOOKS, _SILENT = 2.0, 20.0
"""Seconds between two looks at the head, and of silence until it is lost: Ray ends its process after 60."""


class HeadLostError(Exception):
    """The head of the cluster does not answer any more."""


class Head:
    """The head of a cluster; when it is lost, so is all that is waited for."""

    def __init__(self, host: str, port: int) -> None:
        self._place = host, port
        self._waited = set[Future[Any]]()
        self._over, self.lost = Event(), False
        Thread(target=self._look, daemon=True).start()

    def until_lost(self, theirs: Future[Any]) -> Future[Any]:
        """A future of Ray's that fails when the head is lost, which Ray's own does not.

        Raises:
            HeadLostError: It is lost already.
        """
        ours: Future[Any] = Future()
        self._waited.add(ours)
        if self.lost:
            raise HeadLostError
        theirs.add_done_callback(lambda _: self._answered(ours, theirs))
        return ours

    def _answered(self, ours: Future[Any], theirs: Future[Any]) -> None:
        self._waited.discard(ours)
        with suppress(InvalidStateError):  # lost in this moment
            if (error := theirs.exception()) is not None:
                ours.set_exception(error)
            else:
                ours.set_result(theirs.result())

    def _look(self) -> None:
        silent = 0.0
        while silent < _SILENT:
            if self._over.wait(_LOOKS):
                return
            try:
                socket.create_connection(self._place, timeout=_LOOKS).close()
                silent = 0.0
            except OSError:
                silent += _LOOKS
        self.lost = True
        for future in list(self._waited):
            with suppress(InvalidStateError):
                future.set_exception(HeadLostError())

    def leave(self) -> None:
        """Look no more."""
        self._over.set()
