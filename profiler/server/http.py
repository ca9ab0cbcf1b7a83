"""HTTP/1.1 as a benchmark client needs it: one request, one answer, each event of a stream with the moment it came.

asyncio's own streams take a task switch for every line; here the bytes are looked at where they arrive.
(RFC 9112: Content-Length, chunked, or until the end.)
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from simbatch.sim.errors import Problem, UserError

PORTS = {"http": 80, "https": 443}
now = time.perf_counter


class Endpoint(NamedTuple):
    """Where a server is; `path` is what its own paths are appended to."""

    url: str
    host: str
    port: int
    is_tls: bool
    path: str

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """From http://host:port, with or without /v1 behind it; UserError for anything else."""
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS[parts.scheme]
        except (ValueError, KeyError):
            parts, port = urlsplit(""), 0
        if not parts.hostname:
            raise UserError(Problem("--server", "must be an address", url, "write for example http://localhost:8000"))
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(url.rstrip("/"), parts.hostname, port, parts.scheme == "https", path)

    def request(self, method: str, path: str, body: bytes = b"", headers: tuple[str, ...] = ()) -> bytes:
        """A request as it is sent."""
        lines = [f"{method} {self.path}{path} HTTP/1.1", f"Host: {self.host}:{self.port}", *headers]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


class Answer:
    """What came back: status and text, or of a stream when each event with tokens came, and what it ended with."""

    __slots__ = (
        *("chunk_s", "error", "num_cached_tokens", "num_output_tokens", "reason", "rest", "sent_s", "status"),
        "token_ids",
    )

    def __init__(self) -> None:
        self.sent_s = now()  # when its request was written
        self.status, self.reason, self.rest = 0, "", b""
        self.chunk_s: list[float] = []
        self.num_output_tokens: int | None = None  # as the server counts
        self.num_cached_tokens = 0  # of the prompt; 0 too where it does not tell
        self.error = ""
        self.token_ids: list[int] = []  # where they were asked for, and the server tells them

    @property
    def message(self) -> str:
        """What an answer that is no 200 says, in one line."""
        try:
            content = json.loads(self.rest)
            inner = content.get("error", content)
            text = inner.get("message") if isinstance(inner, dict) else str(inner)
        except (ValueError, AttributeError):
            text = self.rest.decode(errors="replace")
        return f"HTTP {self.status}: {' '.join(str(text or self.reason).split())[:300]}"

    def takes(self, data: bytes, at_s: float) -> None:
        """More of the body."""
        self.rest += data
        if self.status == 200 and b"\n\n" in self.rest:
            *events, self.rest = self.rest.split(b"\n\n")
            for event in events:
                if event.startswith(b"data:"):
                    self._event(event[5:].strip(), at_s)

    def _event(self, data: bytes, at_s: float) -> None:
        if data == b"[DONE]":
            return
        content: dict[str, Any] = json.loads(data)
        if choices := content.get("choices"):
            self.chunk_s.append(at_s)
            self.token_ids += choices[0].get("token_ids") or ()
        if usage := content.get("usage"):
            self.num_output_tokens = usage.get("completion_tokens")
            self.num_cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        if error := content.get("error"):
            self.error = str(error.get("message") if isinstance(error, dict) else error)


class Connection(asyncio.Protocol):
    """A connection that is used for one request after the other."""

    def __init__(self) -> None:
        self.heard_s = now()  # when the last bytes came
        self._transport: asyncio.Transport | None = None
        self._answer = Answer()
        self._ended: asyncio.Future[Answer] | None = None
        self._buffer = b""
        self._left: int | None = None  # bytes of the body that are still to come; None: chunked, or until the end
        self._is_chunked = self._has_head = self._is_last = False

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent on it."""
        return self._transport is not None and not self._transport.is_closing() and not self._is_last

    @property
    def has_heard(self) -> bool:
        """Whether anything of the answer has come."""
        return self._has_head or bool(self._buffer)

    async def exchange(self, request: bytes, answer: Answer | None = None) -> Answer:
        """Send a request, and wait for the whole answer; ConnectionError when the connection breaks before its end.

        An `answer` that is given is filled as it comes.
        """
        assert self._transport is not None
        self._answer, self._buffer = answer or Answer(), b""
        self._left, self._has_head, self._is_chunked = None, False, False
        self._ended = asyncio.get_running_loop().create_future()
        self.heard_s = self._answer.sent_s = now()
        self._transport.write(request)
        return await self._ended

    def close(self) -> None:
        """No more requests."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        at_s = self.heard_s = now()
        self._buffer += data
        try:
            if self._has_head or self._head():
                self._body(at_s)
        except (ValueError, AttributeError, TypeError) as error:  # neither HTTP nor a stream of events
            self._breaks(ConnectionError(f"its answer cannot be read: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        if self._has_head and not self._is_chunked and self._left is None and error is None:
            self._finish()
        else:
            self._breaks(ConnectionError(str(error or "the server closed the connection")))

    def _breaks(self, error: ConnectionError) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)
        self.close()

    def _finish(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(self._answer)

    def _head(self) -> bool:
        head, mark, rest = self._buffer.partition(b"\r\n\r\n")
        if not mark:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        _, status, *reason = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._answer.status, self._answer.reason = int(status), "".join(reason)
        self._is_chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self._left = int(headers["content-length"]) if "content-length" in headers else None
        self._is_last = headers.get("connection", "").lower() == "close"
        self._buffer, self._has_head = rest, True
        return True

    def _body(self, at_s: float) -> None:
        if self._is_chunked:
            while self._chunk(at_s):
                pass
            return
        data, self._buffer = self._buffer, b""
        self._answer.takes(data, at_s)
        if self._left is not None:
            self._left -= len(data)
            if self._left <= 0:
                self._finish()

    def _chunk(self, at_s: float) -> bool:
        """Take one whole chunk out of the buffer, if there is one; the chunk of no bytes is the last."""
        line, mark, rest = self._buffer.partition(b"\r\n")
        if not mark:
            return False
        size = int(line.partition(b";")[0], 16)
        if len(rest) < size + 2:
            return False
        self._buffer = rest[size + 2 :]
        if size == 0:
            self._finish()
            return False
        self._answer.takes(rest[:size], at_s)
        return True


async def connect(endpoint: Endpoint) -> Connection:
    """A new connection; OSError when there is nobody."""
    context = ssl.create_default_context() if endpoint.is_tls else None
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, endpoint.host, endpoint.port, ssl=context)
    return connection


class Connections:
    """Connections to one server, each used again when its answer is whole."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

    @property
    def heard_s(self) -> float | None:
        """When anything last came of an answer that is awaited; None while none is."""
        return max((connection.heard_s for connection in self._busy), default=None)

    async def exchange(self, request: bytes, answer: Answer | None = None) -> Answer:
        """On a connection that is free, else on a new one; one that the server closes as we write is replaced."""
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                try:
                    return await self._on(connection, request, answer)
                except ConnectionError:
                    if connection.has_heard:
                        raise
        return await self._on(await connect(self._endpoint), request, answer)

    def close(self) -> None:
        """No more requests."""
        for connection in self._idle:
            connection.close()

    async def _on(self, connection: Connection, request: bytes, answer: Answer | None) -> Answer:
        self._busy.add(connection)
        try:
            whole = await connection.exchange(request, answer)
        except BaseException:
            connection.close()
            raise
        finally:
            self._busy.discard(connection)
        if connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
        return whole
