"""Requests to a running server: a workload in real time, or by hand.

`Client`: who is due is sent, what comes back is noted, until all have ended. The requests come through the simulator's
own `Traffic`, so that a limit on concurrency, a closed loop and its think time are the same on both sides. All is one
thread; how late it was and how busy is told, so that a client that does not keep up is not taken for a slow server.

`Driver`: sent when they are asked for, each answer watched while it comes.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from simbatch.profiler.records import Requests
from simbatch.profiler.server import WAIT_S, completion, reason_of
from simbatch.profiler.server.http import Answer, Connections, Endpoint, connect, now
from simbatch.sim.clock import PS_PER_S, to_ps, to_s
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.sessions import traffic_of
from simbatch.sim.engine.traffic import FAR
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.interpreter import frozen
from simbatch.sim.scheduler.request import NEVER, Request

LEAD_S = 0.2  # between the start of the clock and time 0
STALL_S = 300.0  # without any token, while requests are out: the server is taken for dead
LOOK_S = 5.0
CUT_OFF = "unanswered when the run was cut off"
Tell = Callable[[int, float], None]  # ended requests, and the time (s) since the start


@dataclass
class Sent:
    """A request and what came of it; times in s from the run's start, `queued_s` is how long it was held back.

    `error` is empty where all went well, `num_output_tokens` 0 where nothing came.
    """

    sent_s: float
    queued_s: float
    num_prompt_tokens: int
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    chunk_s: list[float] = field(default_factory=list)
    error: str = CUT_OFF
    row: int = NEVER  # of the source, of a turn of a session


class ServerGoneError(Exception):
    """The server has died in the middle."""


class Client:
    """One run of `requests` on a server.

    `body_of` is a request as it is sent, asked for when it is due; `heard` is told whose answer has come whole, and its
    token ids as far as the server tells them. Turns of sessions are sent when others have ended, as in simulation; one
    that fails ends its session.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        requests: Requests,
        body_of: Callable[[Request], bytes],
        max_model_len: int,
        tell: Tell,
        heard: Callable[[Request, list[int]], None] | None = None,
    ) -> None:
        self._endpoint, self._body_of, self._tell, self._heard = endpoint, body_of, tell, heard
        self._own_ps = None if requests.turns is not None else requests.all.arrival_ps
        self._traffic = traffic_of(requests, Recorder(), max_model_len, None, None)
        self._connections = Connections(endpoint)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._origin_s = 0.0
        self._gone: ServerGoneError | None = None
        self.rows: dict[int, Sent] = {}  # by the requests' number; those that were sent
        self.cpu_share = 0.0  # of one core, that this took
        self.late_s: list[float] = []  # after its moment was each request sent

    @property
    def sent(self) -> list[Sent]:
        """What was sent, in the order of the requests."""
        return [self.rows[index] for index in sorted(self.rows)]

    @property
    def origin_s(self) -> float:
        """Time 0 of the run, s of `time.monotonic`."""
        return self._origin_s

    async def run(self) -> None:
        """Send everything, and wait for the last token; ServerGoneError when the server dies."""
        self._ended = asyncio.Event()
        with frozen():
            cpu_s, self._origin_s = time.process_time(), now() + LEAD_S
            try:
                await self._loop()
            finally:
                self.cpu_share = (time.process_time() - cpu_s) / max(now() - self._origin_s + LEAD_S, 1e-9)
                for task in self._tasks.values():
                    task.cancel()
                self._connections.close()

    async def _loop(self) -> None:
        while self._gone is None:
            while self._traffic.next_ps <= self._now_ps():
                self._traffic.take_one(self._send)
            if not self._tasks and self._traffic.next_ps == FAR:
                return
            await self._wait(min(LOOK_S, to_s(self._traffic.next_ps - self._now_ps())))
            heard_s = self._connections.heard_s
            if heard_s is not None and now() - heard_s > STALL_S:
                self._gone = ServerGoneError(f"nothing has come from it for {STALL_S:g} s")
        raise self._gone

    async def _wait(self, wait_s: float) -> None:
        """Until then, or until a request has ended."""
        self._ended.clear()
        handle = asyncio.get_running_loop().call_later(max(wait_s, 0.0), self._ended.set)
        await self._ended.wait()
        handle.cancel()

    def _send(self, request: Request) -> None:
        due_ps, sent_s = request.arrival_ps, now() - self._origin_s
        self.late_s.append(sent_s - to_s(due_ps))
        own_ps = due_ps if self._own_ps is None else self._own_ps[request.index]
        row = Sent(sent_s, max(0.0, sent_s - own_ps / PS_PER_S), request.num_prompt_tokens, row=request.row)
        self.rows[request.index] = row
        self._tasks[request.index] = asyncio.get_running_loop().create_task(self._serve(request, row))

    async def _serve(self, request: Request, row: Sent) -> None:
        try:
            answer = await self._connections.exchange(self._body_of(request))
            self._take(row, answer, request.max_tokens)
            if not row.error:
                request.finish_ps = self._now_ps()
                if self._heard is not None:
                    self._heard(request, answer.token_ids)
        except OSError as error:
            row.error = f"connection lost: {reason_of(error)}"
            await self._check_alive()
        del self._tasks[request.index]
        self._traffic.left(request, self._now_ps())
        self._tell(self._traffic.num_gone, now() - self._origin_s)
        self._ended.set()

    def _take(self, row: Sent, answer: Answer, asked: int) -> None:
        row.chunk_s = [at_s - self._origin_s for at_s in answer.chunk_s]
        row.error, row.num_cached_tokens = answer.error, answer.num_cached_tokens
        if answer.status != 200:
            row.error = answer.message
        elif not answer.chunk_s:
            row.error = row.error or "the stream ended without a token"
        else:  # a server that does not count may put several tokens into one event
            row.num_output_tokens = asked if answer.num_output_tokens is None else answer.num_output_tokens
            if row.num_output_tokens != asked and not row.error:
                row.error = (
                    f"{row.num_output_tokens:,} tokens instead of {asked:,}: the server does not heed ignore_eos"
                )

    async def _check_alive(self) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                (await connect(self._endpoint)).close()
        except OSError as error:
            self._gone = ServerGoneError(reason_of(error))

    def _now_ps(self) -> int:
        return to_ps(now() - self._origin_s)


LOOK_TOKENS_S = 0.001  # how often it is looked whether tokens have come


@dataclass
class Flight:
    """A request on its way, and its answer so far."""

    name: str  # inside of the server, as part of its own id
    num_prompt_tokens: int
    max_tokens: int
    answer: Answer = field(default_factory=Answer)
    task: asyncio.Task[None] | None = None

    @property
    def sent_s(self) -> float:
        """When it was sent, s of `time.monotonic`."""
        return self.answer.sent_s

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
        self._connections = Connections(endpoint)
        self._stamp, self._number = f"sb{int(1e3 * now()):x}", 0  # a server may have been driven before
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:  # a connection a request, and there may be a thousand
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def send(self, prompt: Sequence[int], max_tokens: int, sampling: dict[str, Any]) -> Flight:
        """Hand a request in; it goes when the caller waits for something."""
        self._number += 1
        flight = Flight(f"{self._stamp}-{self._number}", len(prompt), max_tokens)
        body = {"max_tokens": max_tokens, **sampling, "prompt": list(prompt)}
        request = completion(self._endpoint, self._model, body, flight.name)
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
            await asyncio.sleep(LOOK_TOKENS_S)
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
        self._connections.close()

    async def _fly(self, flight: Flight, request: bytes) -> None:
        try:
            await self._connections.exchange(request, flight.answer)
        except OSError as error:
            raise self._gone(f"connection lost: {error}") from None

    def _gone(self, why: str) -> UserError:
        mend = "look into its log; measured so far is kept, go on with --resume"
        return UserError(Problem(f"the server at {self._endpoint.url}", f"failed in the middle: {why}", mend=mend))
