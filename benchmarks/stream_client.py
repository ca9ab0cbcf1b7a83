"""A client that streams completions and notes when each token came; needs aiohttp, which vLLM's environment has.

Prompts are random token ids, so nothing is tokenised on the way in and no two prompts begin alike.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiohttp

LOWEST_TOKEN, VOCAB_SIZE = 1000, 120_000
TIMEOUT_S = 600.0


class Sent(NamedTuple):
    """A request: when to send it (s from the begin; None in a closed loop: when a place is free), and its lengths."""

    at_s: float | None
    num_prompt_tokens: int
    num_output_tokens: int


class Streamed(NamedTuple):
    """What came of it: sent at (s of `time.monotonic`), and when each chunk came, of a token or of several."""

    name: str
    sent_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    chunk_s: list[float]

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return 1e3 * (self.chunk_s[0] - self.sent_s)

    @property
    def e2el_ms(self) -> float:
        """Time to the last one."""
        return 1e3 * (self.chunk_s[-1] - self.sent_s)

    @property
    def tpot_ms(self) -> float:
        """Time per token after the first; of requests with more than one."""
        return (self.e2el_ms - self.ttft_ms) / (self.num_output_tokens - 1)


def stream(
    url: str, model: str, requests: Sequence[Sent], *, concurrency: int | None = None, seed: int = 0, **body: Any
) -> list[Streamed]:
    """Send them all and wait for the last token; `body` is added to every request's."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(LOWEST_TOKEN, VOCAB_SIZE) for _ in range(r.num_prompt_tokens)] for r in requests]
    return asyncio.run(_stream(url, model, requests, prompts, concurrency, seed, body))


async def _stream(
    url: str,
    model: str,
    requests: Sequence[Sent],
    prompts: list[list[int]],
    concurrency: int | None,
    seed: int,
    more: dict[str, Any],
) -> list[Streamed]:
    places = asyncio.Semaphore(concurrency or len(requests))
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        begin_s = time.monotonic() + 0.2

        async def one(i: int, request: Sent) -> Streamed:
            if request.at_s is not None:
                await asyncio.sleep(max(0.0, begin_s + request.at_s - time.monotonic()))
            async with places:
                name = f"s{seed}r{i}"
                body = {"model": model, "prompt": prompts[i], "max_tokens": request.num_output_tokens, "stream": True}
                sent_s = time.monotonic()
                answer = session.post(
                    f"{url}/v1/completions",
                    json=body | {"ignore_eos": True, "temperature": 0} | more,
                    headers={"X-Request-Id": name},
                )
                async with answer as response:
                    response.raise_for_status()
                    chunk_s = [t async for t in _chunk_times(response)]
                return Streamed(name, sent_s, request.num_prompt_tokens, request.num_output_tokens, chunk_s)

        return await asyncio.gather(*(one(i, request) for i, request in enumerate(requests)))


async def _chunk_times(response: aiohttp.ClientResponse) -> Any:
    rest = b""
    async for part in response.content.iter_any():
        now_s = time.monotonic()
        *lines, rest = (rest + part).split(b"\n\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield now_s
