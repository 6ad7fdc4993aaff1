"""What stands before every page: who may ask, by which name, with how much, and what a browser may do with the answer.

A page on this machine is within reach of every web site that its user visits. Three things keep those out: the ``Host`` header
must name this machine, so a foreign name that is made to point here (DNS rebinding) is refused; a request that a browser says
comes from another site is refused unless it is a plain visit; and beyond this machine a token is asked for.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.formparsers import MultiPartException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
                                 b"form-action 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # with none at all, browsers hide where a form comes from
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)  # fmt: skip
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_DRAINED = 256 * 2**20
"""Bytes of a refused body that are read and forgotten: a client that only listens after sending then learns why."""
_DRAINING = 10.0
"""Seconds that it may take."""
_SILENT = 1.0
"""Seconds without a part of it after which nobody waits for more."""
_REFUSED_BROWSING = frozenset({"cross-site", "same-site"})


@dataclass(frozen=True, slots=True)
class Rules:
    """Whom to answer.

    Args:
        host: Address that the server listens on.
        token: What a request must bring, if anything.
        bytes: Of a body at most.
        patience: Seconds between two parts of a body at most.
        whole: Seconds that all of a body may take.
        called: Names of this machine in small letters, where others may reach it.
    """

    host: str
    port: int
    token: str | None
    bytes: int
    patience: float
    whole: float = 120.0
    called: frozenset[str] = frozenset()

    @property
    def cookie(self) -> str:
        """Cookies know no ports: each server on this machine has its own."""
        return f"dinoforge_{self.port}"

    def names(self, host: str) -> bool:
        """Whether a ``Host`` header names this server: by the name it was given, by an address, or as this machine."""
        found = _HOST.fullmatch(host)
        if found is None or int(found[2] or 80) != self.port:
            return False
        name = found[1].strip("[]").lower()
        if name in {"localhost", self.host.lower()}:
            return True
        if is_loopback(self.host):
            return is_loopback(name)
        return _is_address(name) or name in self.called

    def admits(self, token: str | None) -> bool:
        """Whether it is the token; the time taken does not tell how much of it is right."""
        return self.token is None or (token is not None and hmac.compare_digest(token.encode(), self.token.encode()))


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches that address."""
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Wraps an application: nothing reaches it that the rules refuse, and no body is longer than they allow."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return  # nothing here speaks websocket
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body = _Body(receive, self._rules, empty=_is_empty(headers))
        answer = _Answer(send, body)
        refusal = _stranger(headers, scope["method"], self._rules) or _too_long(headers, self._rules)
        if refusal is not None:
            await answer.refuse(*refusal, scope["path"])
            return
        if self._rules.token is not None and await self._asked_for_token(headers, scope, answer):
            return
        try:
            await self._app(scope, body, answer)
        except MultiPartException:
            if body.problem is None:
                raise
        if body.problem is not None:  # whatever was made of it
            await answer.refuse(*body.problem, scope["path"])

    async def _asked_for_token(self, headers: dict[str, str], scope: Message, answer: _Answer) -> bool:
        """Whether a request was answered for its token: refused without one, sent on where it stands in the address."""
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)).get("token")
        known = self._rules.admits(_token_in(headers, self._rules))
        if scope["method"] == "GET" and given is not None and (known or self._rules.admits(given)):
            await answer.welcome(scope, self._rules)
        elif not known:
            told = "this page needs its token: open the address that `dinoforge explore` printed"
            await answer.refuse(401, told, scope["path"])
        else:
            return False
        return True


def _stranger(headers: dict[str, str], method: str, rules: Rules) -> tuple[int, str] | None:
    """Why a request is not from a page of ours, if it is not."""
    if not rules.names(headers.get("host", "")):
        return 400, "the Host header names another machine; open the address that `dinoforge explore` printed"
    foreign = headers.get("sec-fetch-site") in _REFUSED_BROWSING
    visits = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    origin = headers.get("origin")
    if (foreign and not visits) or (origin is not None and origin.partition("://")[2] != headers["host"]):
        return 403, "another site asked for this"
    return None


def _is_empty(headers: dict[str, str]) -> bool:
    return headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers


def _too_long(headers: dict[str, str], rules: Rules) -> tuple[int, str] | None:
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > rules.bytes:
        return 413, _limit(rules)
    return None


def _limit(rules: Rules) -> str:
    return f"more than {rules.bytes:,} bytes are not taken"


def _token_in(headers: dict[str, str], rules: Rules) -> str | None:
    """The token of a cookie, or of a header as programs send it."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return bearer.strip()
    # Servers on other ports of this machine set cookies too, of any form: one is read, whatever the others are.
    pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
    return next((value for name, _, value in pairs if name == rules.cookie), None)


class _Body:
    """The parts of a request's body, counted; too many bytes, too long a silence between them or in all, end it."""

    def __init__(self, receive: Receive, rules: Rules, *, empty: bool) -> None:
        self._receive, self._rules = receive, rules
        self.seen, self.whole = 0, empty
        self.problem: tuple[int, str] | None = None
        """Status and reason, where it was ended."""
        self._end: float | None = None

    async def __call__(self) -> Message:
        if self.whole:
            return await self._receive()  # waits for the client to go
        if self._end is None:
            self._end = time.monotonic() + self._rules.whole
        left = self._end - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), min(left, self._rules.patience))
        except TimeoutError:
            if left < self._rules.patience:
                raise self._ended(408, f"the body was not here after {self._rules.whole:g} seconds") from None
            raise self._ended(408, f"nothing came for {self._rules.patience:g} seconds") from None
        self._count(message)
        if self.seen > self._rules.bytes:
            raise self._ended(413, _limit(self._rules))
        if message["type"] == "http.disconnect":
            raise self._ended(400, "the body ended too early")
        return message

    def _ended(self, status: int, told: str) -> MultiPartException:
        """What the reader of the body gets: the error after which it closes the files that it has begun."""
        self.problem = status, told
        return MultiPartException(told)

    async def drain(self) -> None:
        """Read the rest and forget it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAINING):
                while not self.whole and self.seen < _DRAINED:
                    self._count(await asyncio.wait_for(self._receive(), _SILENT))

    def _count(self, message: Message) -> None:
        self.seen += len(message.get("body", b""))
        self.whole = message["type"] == "http.disconnect" or not message.get("more_body", False)


class _Answer:
    """What goes back: with our headers, and whole before a body that nobody wanted is cut off."""

    def __init__(self, send: Send, body: _Body) -> None:
        self._send, self._body = send, body

    async def __call__(self, message: Message) -> None:
        """Of the application; nothing once its reading was ended."""
        if self._body.problem is None:
            await self._forward(message)

    async def _forward(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS, *self._closing()]}
        elif not message.get("more_body", False) and not self._body.whole:
            await self._send({**message, "more_body": True})
            await self._body.drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def refuse(self, status: int, told: str, path: str) -> None:
        """One line, as JSON where that was asked for."""
        as_json = path.startswith("/api/") or path == "/openapi.json"
        text = json.dumps({"error": told}) if as_json else f"dinoforge: {told}.\n"
        kind = b"application/json" if as_json else b"text/plain; charset=utf-8"
        await self._whole(status, text.encode(), (b"content-type", kind))

    async def welcome(self, scope: Message, rules: Rules) -> None:
        """Put the token from the address into a cookie, and go on without it in the address."""
        query = [pair for pair in parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"]
        # Behind two slashes a browser would look for another machine.
        place = "/" + scope.get("raw_path", b"/").decode("latin-1").partition("?")[0].lstrip("/\\")
        cookie = f"{rules.cookie}={rules.token}; Path=/; HttpOnly; SameSite=Strict"
        there = place + (f"?{urlencode(query)}" if query else "")
        await self._whole(303, b"", (b"location", there.encode("latin-1")), (b"set-cookie", cookie.encode()))

    async def _whole(self, status: int, text: bytes, *headers: tuple[bytes, bytes]) -> None:
        about = [*headers, (b"content-length", str(len(text)).encode()), (b"cache-control", b"no-store")]
        await self._forward({"type": "http.response.start", "status": status, "headers": about})
        await self._forward({"type": "http.response.body", "body": text})

    def _closing(self) -> list[tuple[bytes, bytes]]:
        return [] if self._body.whole else [(b"connection", b"close")]
