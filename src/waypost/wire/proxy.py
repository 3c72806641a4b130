"""The home of the forward proxy: a tunnel through it to an address that we chose (D10).

The proxy is told an address and never a name, so that what the egress policy
has judged is what is connected.  Whose fault a failure is decides whether it
uses up a retry:

| the proxy                                      | the outcome                    |
| ---------------------------------------------- | ------------------------------ |
| answers CONNECT with 2xx                       | a tunnel                       |
| is not found, not connected to, closes, hangs  | `proxy_fault`                  |
| answers 407 or 5xx, or what is no HTTP         | `proxy_fault`                  |
| answers 5xx, and says that it was the host     | an error of the host, which counts |
| answers anything else, such as 403             | an error, which counts         |

A proxy says that it was the host by `Proxy-Status` (RFC 9209), or by Squid's
`X-Squid-Error`.  Without either a host that is down looks like a proxy that is.
"""

import asyncio
import base64
import os
import re
from typing import cast
from urllib.parse import unquote_to_bytes

from waypost.domain.addresses import literal_address
from waypost.domain.attempt import Outcome
from waypost.wire.names import NameFault, Names

HEAD_BYTES_MAX = 16_384
"""The longest head of an answer to CONNECT."""


class Proxy:
    """A proxy, as a setting names it.  No repr of it holds its password."""

    __slots__ = ("_authorization", "host", "port")

    def __init__(self, url: str) -> None:
        """Raises ValueError, saying why, where `url` is not http://[user:password@]host:port."""
        found = _URL.fullmatch(url)
        if found is None:
            raise ValueError(
                "is not of the form http://host:port or http://user:password@host:port"
            )
        userinfo, host, port = found.groups()
        address = literal_address(host)
        if address is None and _NAME.fullmatch(host) is None:
            raise ValueError("has a host that is neither a name nor an address")
        if not 0 < int(port) < 65_536:
            raise ValueError("has a port that is none")
        self.host = host.lower() if address is None else str(address)
        self.port = int(port)
        user, _, password = (userinfo or "").partition(":")
        plain = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
        self._authorization = "" if userinfo is None else base64.b64encode(plain).decode("ascii")

    def __str__(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def tunnel(
        self, address: str, port: int, *, names: Names, until_s: float
    ) -> asyncio.Transport | Outcome:
        """Connect through the proxy by `until_s`, in the loop's time; an outcome where it fails.

        The transport is paused.  Whoever gets it sets its protocol, and lets it
        read again.
        """
        loop = asyncio.get_running_loop()
        transport: asyncio.Transport | None = None
        answered: Outcome | None = _fault("timed out: the proxy did not answer")
        try:
            async with asyncio.timeout_at(until_s):
                place = await self._address(names)
                if isinstance(place, NameFault):
                    return _fault(f"the proxy's {place.why}")
                transport, asking = await loop.create_connection(_Asking, place, self.port)
                answered = await asking.connect(self._head(address, port))
        except TimeoutError:
            pass
        except OSError as fault:
            why = os.strerror(fault.errno) if fault.errno else "the connection failed"
            answered = _fault(f"cannot connect to the proxy: {why}")
        finally:
            if answered is not None and transport is not None:
                transport.abort()
        if answered is not None:
            return answered
        assert transport is not None
        return transport

    async def _address(self, names: Names) -> str | NameFault:
        if literal_address(self.host) is not None:
            return self.host
        found = names.known(self.host) or await names.find(self.host)
        return found if isinstance(found, NameFault) else found[0]

    def _head(self, address: str, port: int) -> bytes:
        place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
        if self._authorization:
            lines.append(f"Proxy-Authorization: Basic {self._authorization}")
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


class _Asking(asyncio.Protocol):
    """A connection to the proxy until it has answered CONNECT."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        self._received = bytearray()

    async def connect(self, head: bytes) -> Outcome | None:
        """Ask for a tunnel; None once it is there."""
        self._transport.write(head)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, rest = bytes(self._received).partition(b"\r\n\r\n")
        if blank:
            # What the destination says is not for us, but for the protocol to come.
            self._transport.pause_reading()
            self._end(_read(head, rest))
        elif len(self._received) > HEAD_BYTES_MAX:
            self._end(_fault(f"the proxy's answer is larger than {HEAD_BYTES_MAX} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(_fault("the proxy closed the connection before it answered"))

    def _end(self, answer: Outcome | None) -> None:
        if not self._answer.done():
            self._answer.set_result(answer)


_URL = re.compile(r"http://(?:([^@/?#\s]*)@)?(\[[^\[\]@/?#]*\]|[^:@/?#\[\]]+):([0-9]{1,5})/?", re.I)
_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?(?:\r\n|\Z)")
_OF_THE_HOST = re.compile(
    rb"\r\nproxy-status:[^\r\n]*\berror=(?:connection_|destination_|tls_)"
    rb"|\r\nx-squid-error: *err_connect_fail\b",
    re.I,
)


def _read(head: bytes, rest: bytes) -> Outcome | None:
    """What an answer to CONNECT means; None is a tunnel."""
    found = _STATUS.match(head)
    if found is None:
        return _fault("the proxy's answer is not HTTP/1.1")
    status = int(found[1])
    if 200 <= status <= 299:
        if rest:
            return Outcome(error="invalid HTTP: bytes came before the request was sent")
        return None
    why = f"the proxy answered {status} to CONNECT"
    if status == 407:
        return _fault(f"{why}: its user or password is missing or wrong")
    if status < 500:
        return Outcome(error=why)
    if _OF_THE_HOST.search(head):
        return Outcome(error=f"{why}: it could not connect", host_down=True)
    return _fault(why)


def _fault(why: str) -> Outcome:
    return Outcome(error=why, proxy_fault=True)
