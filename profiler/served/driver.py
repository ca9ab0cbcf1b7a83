"""Requests to a running server, by hand: sent when they are asked for, each answer watched while it comes."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from simbatch.profiler.served.http import Answer, Connection, Endpoint, connect, now
from simbatch.profiler.served.server import headers
from simbatch.sim.errors import Problem, UserError

LOOK_S = 0.001  # how often it is looked whether tokens have come
STALL_S = 300.0  # without any token: the server is taken for dead


@dataclass
class Flight:
    """A request on its way: when it was sent (s of `time.monotonic`), and its answer so far."""

    name: str  # inside of the server, as part of its own id
    sent_s: float
    num_prompt_tokens: int
    max_tokens: int
    answer: Answer = field(default_factory=Answer)
    task: asyncio.Task[None] | None = None

    @property
    def num_tokens(self) -> int:
        """Events with tokens that have come."""
        return len(self.answer.chunk_s)

    @property
    def has_ended(self) -> bool:
        """Whether the whole answer is there."""
        return self.task is not None and self.task.done()


class Driver:
    """Sends prompts of token ids; `sampling` is part of a request's body, {} leaves it to the model's own config."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self._endpoint, self._model = endpoint, model
        self._idle: list[Connection] = []
        self._stamp, self._number = f"sb{int(1e3 * now()):x}", 0  # a server may have been driven before
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:  # a connection a request, and there may be a thousand
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def send(self, prompt: Sequence[int], max_tokens: int, sampling: dict[str, Any]) -> Flight:
        """Hand a request in; it goes when the caller waits for something."""
        content = {"model": self._model, "stream": True, "ignore_eos": True, "max_tokens": max_tokens}
        body = json.dumps({**content, **sampling, "prompt": list(prompt)}, separators=(",", ":")).encode()
        self._number += 1
        flight = Flight(f"{self._stamp}-{self._number}", now(), len(prompt), max_tokens)
        named = (*headers(), f"X-Request-Id: {flight.name}")
        request = self._endpoint.request("POST", "/v1/completions", body, named)
        flight.task = asyncio.get_running_loop().create_task(self._fly(flight, request))
        return flight

    async def first_tokens(self, flights: Iterable[Flight]) -> None:
        """Wait until each has a token, or has ended."""
        for flight in flights:
            await self.tokens(flight, 1)

    async def tokens(self, flight: Flight, number: int) -> None:
        """Wait until it has so many tokens, or has ended; UserError when it failed or nothing comes any more."""
        since_s, before = now(), flight.num_tokens
        while flight.num_tokens < number and not flight.has_ended:
            await asyncio.sleep(LOOK_S)
            if flight.num_tokens > before:
                since_s, before = now(), flight.num_tokens
            if now() - since_s > STALL_S:
                raise self._gone(f"nothing has come from it for {STALL_S:g} s")
        if flight.has_ended:
            await self.ended([flight])

    async def ended(self, flights: Sequence[Flight]) -> None:
        """Wait for whole answers; UserError when one failed."""
        await asyncio.gather(*(flight.task for flight in flights if flight.task is not None))
        for answer in (flight.answer for flight in flights):
            if answer.status != 200 or answer.error:
                raise self._gone(answer.error or answer.message)

    def close(self) -> None:
        """No more requests."""
        for connection in self._idle:
            connection.close()

    async def _fly(self, flight: Flight, request: bytes) -> None:
        try:
            connection = await self._exchange(flight, request)
        except OSError as error:
            raise self._gone(f"connection lost: {error}") from None
        if connection.is_open:
            self._idle.append(connection)

    async def _exchange(self, flight: Flight, request: bytes) -> Connection:
        """On a connection that is free, else on a new one; one that the server closes as we write is replaced."""
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                flight.sent_s = now()
                try:
                    await connection.exchange(request, flight.answer)
                except ConnectionError:
                    if connection.has_heard:
                        raise
                else:
                    return connection
        connection = await connect(self._endpoint)
        flight.sent_s = now()
        await connection.exchange(request, flight.answer)
        return connection

    def _gone(self, why: str) -> UserError:
        mend = "look into its log; measured so far is kept, go on with --resume"
        return UserError(Problem(f"the server at {self._endpoint.url}", f"failed in the middle: {why}", mend=mend))
