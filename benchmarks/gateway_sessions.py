"""Conversations through a gateway: `python -m benchmarks.gateway_sessions GATEWAY SERVER ...` (docs/serve.md).

So many conversations at once, each of some turns that send all that was said so far. Prints what users felt, and of
each server how many prompts it got and what share of their tokens was in its prefix cache. Needs aiohttp.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks import parser_of

if TYPE_CHECKING:
    import aiohttp

WORDS = ("server", "request", "batch", "place", "other", "takes", "waits", "leaves", "some", "until", "and", "the")
METRICS = ("request_success_total", "prefix_cache_hits_total", "prefix_cache_queries_total")


async def conversation(
    session: aiohttp.ClientSession, url: str, model: str, name: int, turns: int, words: int
) -> list[tuple[float, float, str]]:
    """Of each turn: s to the first token, s to the last, and how it ended."""
    import aiohttp

    rng, messages, felt = random.Random(name), list[dict[str, str]](), []
    await asyncio.sleep(rng.random() * 3)
    for _ in range(turns):
        messages.append(
            {"role": "user", "content": " ".join(rng.choice(WORDS) + str(rng.randrange(99)) for _ in range(words))}
        )
        sent_s, first_s, said = time.monotonic(), 0.0, list[str]()
        body = {"model": model, "messages": messages, "stream": True, "max_tokens": 200}
        try:
            name_of_talk = {"X-Session-ID": f"talk{name}"}  # for gateways that keep a conversation on one server
            async with session.post(f"{url}/v1/chat/completions", json=body, headers=name_of_talk) as response:
                response.raise_for_status()
                async for line in response.content:
                    found = re.search(rb'"content":"([^"]+)"', line)
                    if found:
                        first_s = first_s or time.monotonic()
                        said.append(found[1].decode())
        except aiohttp.ClientError as error:
            felt.append((0.0, 0.0, type(error).__name__))
            return felt
        felt.append((first_s - sent_s, time.monotonic() - sent_s, "ok" if first_s else "empty"))
        messages.append({"role": "assistant", "content": "".join(said)})
        await asyncio.sleep(rng.expovariate(1.0))
    return felt


async def metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Counters of a server, from its /metrics."""
    import aiohttp

    try:
        async with session.get(f"{url}/metrics") as response:
            text = await response.text()
    except aiohttp.ClientError:
        return dict.fromkeys(METRICS, float("nan"))
    return {key: sum(map(float, re.findall(rf"^vllm:{key}{{.*}} (\S+)$", text, re.MULTILINE))) for key in METRICS}


async def run(options: argparse.Namespace) -> None:
    """All conversations, then the figures."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        before = [await metrics(session, url) for url in options.servers]
        talks = (
            conversation(session, options.gateway, options.model, options.seed * 1000 + i, options.turns, options.words)
            for i in range(options.conversations)
        )
        felt = [turn for talk in await asyncio.gather(*talks) for turn in talk]
        after = [await metrics(session, url) for url in options.servers]
    _show(felt)
    for url, old, new in zip(options.servers, before, after, strict=True):
        got: dict[str, Any] = {key: new[key] - old[key] for key in METRICS}
        hits = got["prefix_cache_hits_total"] / max(1.0, got["prefix_cache_queries_total"])
        print(f"{url}: {got['request_success_total']:.0f} answers, {100 * hits:.0f} % of prompt tokens from the cache")


def _show(felt: list[tuple[float, float, str]]) -> None:
    ends = [end for *_, end in felt]
    first_ms = np.array([1e3 * first for first, _, end in felt if end == "ok"])
    print({end: ends.count(end) for end in sorted(set(ends))})
    p90, p99 = np.percentile(first_ms, [90, 99])
    print(f"TTFT: mean {first_ms.mean():.0f} ms, P90 {p90:.0f}, P99 {p99:.0f}")


TIMEOUT_S = 600.0
WAIT_S = 300  # for a server's end
LOWEST_TOKEN, VOCAB_SIZE = 1000, 120_000


@contextmanager
def served(profile: object, *options: object, flags: Sequence[object] = ()) -> Iterator[str]:
    """The address of `simbatch serve PROFILE OPTIONS -- FLAGS` on a free port; RuntimeError where it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = map(str, ("serve", profile, "--port", port, *options, "--", *flags))
    server = subprocess.Popen([sys.executable, "-m", "simbatch", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if line.startswith("ready"):
                break
        else:
            raise RuntimeError(f"it did not start: {''.join(said)}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(WAIT_S)


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
    import aiohttp

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


def main() -> None:
    """Talk, and print."""
    parser = parser_of(__doc__)
    parser.add_argument("gateway", help="URL of the gateway")
    parser.add_argument("servers", nargs="*", help="URLs of the servers behind it")
    parser.add_argument("--model", required=True)
    parser.add_argument("--conversations", type=int, default=40)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--words", type=int, default=300, help="of what a user says each time")
    parser.add_argument("--seed", type=int, default=1)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
