"""A real server, asked what it is: its models, its version, its KV cache; and its recorder's file as it grows."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from simbatch.profiler.records.lines import MEND, RecordedRequest, RecordedStep, item_of
from simbatch.profiler.server.http import Answer, Endpoint, connect
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import json_object

WAIT_S = 30.0  # for an answer that takes no work
CHECK_WAIT_S = 600.0  # for the first tokens: a server may compile something then
# Token ids of prompts are below it. A server does not say how large its vocabulary is, and one without a tokenizer dies
# of an id that is not in it; with 1,000 of them no two blocks of 16 random ids are alike by chance either.
VOCAB_SIZE = 1_000
FIRST_TOKENS = 4
CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Server:
    """A server that answers; `engine` is what it says of settings that a scenario may write, by their names there."""

    endpoint: Endpoint
    model: str
    version: str | None = None
    engine: dict[str, Any] = field(default_factory=dict)

    def completion(self, body: dict[str, Any], name: str = "") -> bytes:
        """A streaming completion as it is sent; the server's own logs have its `name`."""
        return completion(self.endpoint, self.model, body, name)


def completion(endpoint: Endpoint, model: str, body: dict[str, Any], name: str = "") -> bytes:
    """A streaming completion as it is sent; OPENAI_API_KEY goes with it, as with `vllm bench serve`."""
    named = (f"X-Request-Id: {name}",) if name else ()
    content = {"model": model, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, **body}
    data = json.dumps(content, separators=(",", ":")).encode()
    return endpoint.request("POST", "/v1/completions", data, (*headers(), *named))


def headers() -> tuple[str, ...]:
    """What authorises."""
    key = os.environ.get("OPENAI_API_KEY")
    return (f"Authorization: Bearer {key}",) if key else ()


async def look(endpoint: Endpoint, model: str | None) -> Server:
    """Ask who is there, and for a few tokens; UserError, one sentence, where that is not what is needed."""
    answer = await ask(endpoint, endpoint.request("GET", "/v1/models", headers=headers()), WAIT_S)
    try:
        if answer.status != 200:
            raise ValueError(answer.message)
        models = {card["id"]: card for card in json.loads(answer.rest)["data"]}
    except (ValueError, KeyError, TypeError) as error:
        rule = f"answers, but not as an OpenAI-compatible server does ({error})"
        raise UserError(
            Problem(_place(endpoint), rule, mend="write the address that clients of the model take")
        ) from None
    name = _chosen(endpoint, models, model)
    engine = await _cache(endpoint)
    if isinstance(models[name].get("max_model_len"), int):
        engine["max_model_len"] = models[name]["max_model_len"]
    await _check_serves(endpoint, name)
    return Server(endpoint, name, await _version(endpoint), engine)


async def ask(endpoint: Endpoint, request: bytes, wait_s: float) -> Answer:
    """One request on a connection of its own; UserError where nobody answers."""
    try:
        async with asyncio.timeout(wait_s):
            connection = await connect(endpoint)
            try:
                return await connection.exchange(request)
            finally:
                connection.close()
    except TimeoutError:
        rule = f"does not answer within {wait_s:g} s"
    except OSError as error:
        rule = f"cannot be reached: {reason_of(error)}"
    raise UserError(
        Problem(_place(endpoint), rule, mend="start the server first, and wait until it is ready")
    ) from None


def reason_of(error: OSError) -> str:
    """In words, without asyncio's list of addresses."""
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)


def _place(endpoint: Endpoint) -> str:
    return f"--server {endpoint.url}"


def _chosen(endpoint: Endpoint, models: dict[str, Any], model: str | None) -> str:
    served = ", ".join(sorted(models))
    if model is not None and model not in models:
        raise UserError(Problem("--served-model", f"the server at {endpoint.url} serves {served}", model))
    if model is None and len(models) != 1:
        rule = f"serves {served or 'no model'}"
        raise UserError(Problem(_place(endpoint), rule, mend="name one with --served-model"))
    return model if model is not None else next(iter(models))


async def _check_serves(endpoint: Endpoint, model: str) -> None:
    """Ask for a few tokens."""
    body = {"prompt": [VOCAB_SIZE - 1] * FIRST_TOKENS, "max_tokens": FIRST_TOKENS, "temperature": 0}
    answer = await ask(endpoint, completion(endpoint, model, body), CHECK_WAIT_S)
    if answer.status != 200 or answer.error or not answer.chunk_s:
        said = answer.error or ("sends no tokens" if answer.status == 200 else answer.message)
        raise UserError(Problem(_place(endpoint), f"does not complete a prompt of token ids ({said})"))


async def _version(endpoint: Endpoint) -> str | None:
    answer = await ask(endpoint, endpoint.request("GET", "/version", headers=headers()), WAIT_S)
    try:
        return str(json.loads(answer.rest)["version"]) if answer.status == 200 else None
    except (ValueError, KeyError, TypeError):
        return None


async def _cache(endpoint: Endpoint) -> dict[str, Any]:
    """From vLLM's metrics; nothing where there are none."""
    answer = await ask(endpoint, endpoint.request("GET", "/metrics", headers=headers()), WAIT_S)
    found = CACHE.search(answer.rest.decode(errors="replace")) if answer.status == 200 else None
    labels = dict(LABEL.findall(found[1])) if found else {}
    said: dict[str, Any] = {}
    for theirs, ours in (("num_gpu_blocks", "num_gpu_blocks_override"), ("block_size", "block_size")):
        if labels.get(theirs, "").isdigit():
            said[ours] = int(labels[theirs])
    if labels.get("enable_prefix_caching") in ("True", "False"):
        said["enable_prefix_caching"] = labels["enable_prefix_caching"] == "True"
    return said


FIRST_LINES_WAIT_S = 10.0  # for the first lines: they are there before the server is
QUIET_S = 0.15  # the recorder looks 20 times a second for lines to write


async def attached(url: str, steps: Path, model: str | None = None) -> tuple[Server, Tail]:
    """Who serves at `url`, and what its recorder writes from now on: its first step has told the workers' memory."""
    tail = Tail(steps)
    server = await look(Endpoint.of(url), model)
    await tail.settled()
    return server, tail


class Tail:
    """Follows one server's file from its end on, across its rotations; `facts` are what its first line says."""

    def __init__(self, path: Path) -> None:
        self._path, self._rest = path, b""
        self._first, self._kept = b"", list[bytes]()
        self.facts: dict[str, Any] = {}
        self._file = self._open()
        try:
            self.new()
        except UserError:
            self.close()
            raise
        self._kept.clear()

    def new(self) -> list[RecordedStep | RecordedRequest]:
        """Steps and requests, in the order of the file."""
        lines = self._lines()
        found: list[RecordedStep | RecordedRequest] = []
        for line in lines:
            content = json_object(line.decode(errors="replace"), self._path, mend=MEND, what="a line")
            if "recorder" in content:
                self._first = line
                self.facts = content | {key: value for key, value in self.facts.items() if key not in content}
            elif "memory" in content:
                self.facts |= content["memory"]
            else:
                self._kept.append(line)
                found.append(item_of(content, str(self._path)))
        return found

    def cut(self) -> bytes:
        """The lines that came since the last cut, below the server's first one: a file of their own."""
        kept, self._kept = self._kept, []
        return b"\n".join([self._first, *kept, b""])

    async def settled(self) -> list[RecordedStep | RecordedRequest]:
        """What is new once nothing more comes: what a client has just received is in the file a moment later."""
        found, last_s = self.new(), time.monotonic()
        while time.monotonic() - last_s < QUIET_S:
            await asyncio.sleep(QUIET_S / 5)
            if more := self.new():
                found += more
                last_s = time.monotonic()
        return found

    def close(self) -> None:
        """No more looks."""
        self._file.close()

    def _open(self) -> IO[bytes]:
        end_s = time.monotonic() + FIRST_LINES_WAIT_S
        while not (self._path.exists() and self._path.stat().st_size):
            if time.monotonic() > end_s:
                rule = "no steps are written there"
                mend = "start the server with the recorder, or `simbatch serve` with --steps, and name its file"
                raise UserError(Problem(str(self._path), rule, mend=mend))
            time.sleep(0.1)
        return self._path.open("rb")

    def _lines(self) -> list[bytes]:
        data = self._rest + self._file.read()
        if os.fstat(self._file.fileno()).st_ino != self._path.stat().st_ino:  # it has become FILE.1
            data += self._file.read()
            self._file.close()
            self._file = self._path.open("rb")
            data += self._file.read()
        *lines, self._rest = data.split(b"\n")
        return [line for line in lines if line]
