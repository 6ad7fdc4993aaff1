"""Files on the web, over http and https. Machines that are not public are refused, after a redirect too."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin, urlsplit

from dinoforge.data.decode import Broken
from dinoforge.data.sources.options import WEB, credentials
from dinoforge.data.sources.storage import RETRIED, Found, Storage, retried

MAX_BYTES = 1 << 30
"""A longer answer to a request for one file is refused."""
_REDIRECTS = 5
_TIMEOUT = 30.0  # seconds without a byte
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class _Status(OSError):
    """A server's answer that is no file."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass(frozen=True, slots=True)
class Web(Storage):
    """Each read is a request of its own; the address that was checked is the one that is connected to. No proxy is used."""

    allow_private: bool = False

    def read(self, address: str) -> bytes:
        """See ``Storage``."""
        return retried(lambda: self._asked(address, {})).body

    def part(self, address: str, start: int, size: int) -> bytes:
        """See ``Storage``; the server must serve ranges."""
        answer = retried(lambda: self._asked(address, {"Range": f"bytes={start}-{start + size - 1}"}))
        if answer.status != http.client.PARTIAL_CONTENT:
            raise Broken("the server sends no parts of files; download it and give its path")
        return answer.body

    def stamp(self, address: str) -> tuple[int, str]:
        """The size, and the server's tag or date."""
        answer = retried(lambda: self._asked(address, {"Range": "bytes=0-0"}))
        total = str(answer.headers.get("Content-Range", "")).rpartition("/")[2]
        if answer.status != http.client.PARTIAL_CONTENT or not total.isdigit():
            raise Broken("the server sends no parts of files; download it and give its path")
        return int(total), str(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")

    def kind(self, address: str) -> str:
        """A file: the web has no folders."""
        return "file"

    def files(self, address: str) -> Found:
        """The web has no folders.

        Raises:
            Broken: Always.
        """
        raise Broken("the web has no folders; give a list of addresses (.txt, .csv), a .tar or a .parquet")

    def _asked(self, address: str, headers: dict[str, str]) -> _Answer:
        """The answer to a request, redirects followed; user and password go to the first host alone."""
        here, user = credentials(address)
        secret = {"Authorization": "Basic " + base64.b64encode(unquote(user).encode()).decode()} if user else {}
        first = urlsplit(here).netloc
        for _ in range(_REDIRECTS + 1):
            own = secret if urlsplit(here).netloc == first else {}
            answer = self._once(here, headers | own)
            location = answer.headers.get("Location")
            if answer.status in {301, 302, 303, 307, 308} and location:
                if urlsplit(here).scheme == "https" and urlsplit(urljoin(here, location)).scheme == "http":
                    raise Broken("the server redirects from https to http")
                here = credentials(urljoin(here, location))[0]
                continue
            if answer.status not in {http.client.OK, http.client.PARTIAL_CONTENT}:
                raise _Status(answer.status)
            return answer
        raise Broken(f"the server redirects more than {_REDIRECTS} times")

    def _once(self, address: str, headers: dict[str, str]) -> _Answer:
        try:
            parts = urlsplit(address)
            port, host = parts.port, parts.hostname
        except ValueError:
            raise Broken("this is no web address") from None
        if parts.scheme not in WEB or not host:
            raise Broken("this is no web address")
        place = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
            f"?{quote(parts.query, safe='/%:@!$&()*+,;=~?')}" * bool(parts.query)
        )
        kind = _Https if parts.scheme == "https" else _Http
        connection = kind(host, port, timeout=_TIMEOUT)
        connection.allow_private = self.allow_private
        try:
            connection.request("GET", place, headers={"User-Agent": "dinoforge", **headers})
            response = connection.getresponse()
            body = response.read(MAX_BYTES + 1)
        finally:
            connection.close()
        if len(body) > MAX_BYTES:
            raise Broken(f"the file is longer than {MAX_BYTES:,} bytes")
        expected = response.headers.get("Content-Length", "")
        if response.status not in RETRIED and expected.isdigit() and len(body) < int(expected):
            raise http.client.IncompleteRead(body, int(expected) - len(body))
        return _Answer(response.status, response.headers, body)


class _Http(http.client.HTTPConnection):
    """A connection to an address that was looked at first."""

    allow_private = False

    def connect(self) -> None:
        self.sock = _dialled(self.host, self.port, allow_private=self.allow_private)


class _Https(http.client.HTTPSConnection):
    """The same, encrypted; the certificate is checked against the host's name."""

    allow_private = False

    def connect(self) -> None:
        plain = _dialled(self.host, self.port, allow_private=self.allow_private)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


def _dialled(host: str, port: int, *, allow_private: bool) -> socket.socket:
    """A connection to one of the host's addresses, all of which must be public.

    Raises:
        Broken: One is not, or the host's name is unknown.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise Broken("this is no web address") from None
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise
        raise Broken(f"the host {host} is unknown") from None
    ips = [str(place[0]) for *_, place in found]
    private = next((ip for ip in ips if not is_public(ip)), None)
    if private is not None and not allow_private:
        raise Broken(f"{host} is {private}, which is no public address; ?allow_private=true reads it all the same")
    failed: OSError | None = None
    for ip in dict.fromkeys(ips):
        try:
            return socket.create_connection((ip, port), timeout=_TIMEOUT)
        except OSError as error:
            failed = error
    raise failed or ConnectionError("no address")


def is_public(ip: str) -> bool:
    """Whether an IP address belongs to the public internet; one that carries another within is judged by that one too."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not address.is_multicast
