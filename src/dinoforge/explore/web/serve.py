"""The page's server: a socket of our own, uvicorn in a thread, and an address to open."""

from __future__ import annotations

import secrets
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from dinoforge.base.errors import ConfigError, RunError
from dinoforge.explore.web.guard import App, Guard, Rules, is_loopback
from dinoforge.explore.web.settings import WebConfig

_STARTS = 10.0
"""Seconds that a server may take to start."""
_WAITING = 128


def listening(host: str, port: int) -> socket.socket:
    """A socket that waits for connections; port 0 is any free one.

    Raises:
        ConfigError: The port is taken, or the host is no address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_WAITING)
    except (OSError, OverflowError, UnicodeError) as error:
        told = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        raise ConfigError(
            f"host={host} port={port} cannot be listened on: {told}; give another port or host."
        ) from None


def rules_for(sock: socket.socket, host: str, token: str | None, limits: WebConfig) -> Rules:
    """Whom to answer: beyond this machine nobody without a token, which is drawn if none is given."""
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    # Asked for once, before anything is served: a name server may take its time.
    called = frozenset() if is_loopback(host) else frozenset({socket.gethostname().lower(), socket.getfqdn().lower()})
    return Rules(
        host, sock.getsockname()[1], token, limits.upload_bytes, limits.patience, limits.upload_seconds, called
    )


class Server:
    """A running server.

    Args:
        app: What answers; it is wrapped in a ``Guard``.
        connections: So many at a time.

    Raises:
        RunError: It does not start.
    """

    def __init__(self, app: App, sock: socket.socket, rules: Rules, *, connections: int) -> None:
        import uvicorn

        from dinoforge.explore.web.heads import hurried

        self.url = _address(rules)
        # No access log: it would tell the token.
        config = uvicorn.Config(
            Guard(app, rules), http=hurried(rules.patience), ws="none", lifespan="off", log_level="warning", access_log=False,
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=2, loop="asyncio",
            limit_concurrency=connections,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([sock],), name="explore-page", daemon=True)
        self._thread.start()
        ready = threading.Event()
        for _ in range(int(_STARTS / 0.01)):
            if self._server.started:
                return
            if not self._thread.is_alive():
                break
            ready.wait(0.01)
        self._server.should_exit = True
        sock.close()
        raise RunError(f"the page could not be served: its server did not start in {_STARTS:g} seconds; start again.")

    def close(self) -> None:
        """End it; what is being answered may take two seconds more."""
        self._server.should_exit = True
        self._thread.join(10)

    def wait(self, failed: Callable[[], Exception | None]) -> None:
        """Serve until this process is asked to stop (Ctrl-C, SIGTERM), then end.

        Args:
            failed: What makes serving useless, once it is known; that is raised.
        """
        stop = threading.Event()

        def stopped(_number: int, _frame: FrameType | None) -> None:
            stop.set()

        before: dict[int, Any] = {number: signal.signal(number, stopped) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not stop.wait(0.5) and self._thread.is_alive():
                error = failed()
                if error is not None:
                    raise error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.close()


def _address(rules: Rules) -> str:
    """What to open. Of a server that listens on every address, this machine's name stands in it."""
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(rules.host, rules.host)
    place = f"http://{f'[{host}]' if ':' in host else host}:{rules.port}/"
    return place if rules.token is None else f"{place}?token={rules.token}"
