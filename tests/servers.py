"""A server of the tests' own that streams as vLLM does, and a recorder in it: every step as planted."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time

STEP_S = 0.02
BLOCK = 16
MODEL = "stand-in"
HANGS = "hangs"  # no answer at all
METRICS = 'vllm:cache_config_info{block_size="16",enable_prefix_caching="True",num_gpu_blocks="600"} 1.0\n'


class Request:
    """A request in the server, and the tokens that it has been given."""

    def __init__(self, name, body):
        self.name, self.num_prompt_tokens, self.left = name, len(body["prompt"]), body["max_tokens"]
        self.num_computed, self.tokens = 0, asyncio.Queue()


class StreamingServer:
    """Serves in a thread of its own until closed; `bodies` are the completions asked for.

    `answer` may say for a request's number what is answered instead (status, text; or HANGS). After `lives`
    completions it dies. An event has `at_once` tokens. `recorder` is told of every step and request, and says how long
    each step lasts.
    """

    def __init__(
        self, *, max_model_len=600, answer=lambda number: None, lives=None, at_once=1, metrics=METRICS, recorder=None
    ):
        self._recorder = recorder
        self.bodies, self.max_at_once = [], 0
        self._max_model_len, self._answer, self._lives, self._metrics = max_model_len, answer, lives, metrics
        self._running, self._writers, self._num_ended, self._at_once = [], set(), 0, at_once
        self.tells_token_ids, self.tells_hits = True, True
        self._served = set()  # beginnings of whole blocks
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._is_up.wait()

    @staticmethod
    def token_id(num_prompt_tokens, number):
        """What it samples."""
        return 10_000 + num_prompt_tokens + number

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def close(self):
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    async def _serve(self):
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=2**24)
        self.port = server.sockets[0].getsockname()[1]
        steps = asyncio.create_task(self._steps())
        self._is_up.set()
        await self._ended.wait()
        steps.cancel()
        server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _steps(self):
        while True:
            batch = [request for request in self._running if request.left > 0]
            self.max_at_once = max(self.max_at_once, len(batch))
            if not batch:
                await asyncio.sleep(0.0005)
                continue
            if self._recorder is None:
                await asyncio.sleep(STEP_S)
            else:
                await self._recorder.step(batch)
            for request in batch:
                request.left -= 1
                request.tokens.put_nowait(b"x")

    async def _connected(self, reader, writer):
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next((int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.startswith(b"Content-L")), 0)
                named = re.search(rb"X-Request-Id: (\S+)", head)
                body = await reader.readexactly(length)
                await self._answers(head.split(b" ")[1].decode(), body, writer, named[1].decode() if named else "-")
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answers(self, path, body, writer, name):
        if path == "/v1/models":
            card = {"id": MODEL, "max_model_len": self._max_model_len}
            _whole(writer, 200, json.dumps({"data": [card]}))
        elif path == "/metrics" and self._metrics is not None:
            _whole(writer, 200, self._metrics)
        elif path == "/v1/completions":
            body = json.loads(body)
            self.bodies.append(body)
            instead = self._answer(len(self.bodies) - 1)
            if instead == HANGS:
                await self._ended.wait()
            elif instead is not None:
                _whole(writer, instead[0], json.dumps({"error": {"message": instead[1]}}))
            else:
                await self._stream(Request(name, body), body, writer)
                self._num_ended += 1
                if self._num_ended == self._lives:
                    self._ended.set()
        else:
            _whole(writer, 404, json.dumps({"detail": "Not Found"}))
        await writer.drain()

    def _hits(self, prompt, num_output_tokens):
        """Tokens that earlier prompts and answers begin with too, in whole blocks, the last token left out."""
        answer = [self.token_id(len(prompt), number + 1) for number in range(num_output_tokens - 1)]
        text = [*prompt, *answer]
        ends = range(BLOCK, len(text) + 1, BLOCK)
        known = [end for end in ends if tuple(text[:end]) in self._served and end < len(prompt)]
        self._served |= {tuple(text[:end]) for end in ends}
        return max(known, default=0)

    async def _stream(self, request, body, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        self._running.append(request)
        for number in range(1, body["max_tokens"] + 1):
            await request.tokens.get()
            if number % self._at_once and number != body["max_tokens"]:
                continue
            choice = {"text": ""}
            if body.get("return_token_ids") and self.tells_token_ids:
                new = number - (number - 1) // self._at_once * self._at_once
                choice["token_ids"] = [self.token_id(request.num_prompt_tokens, number - i) for i in range(new)][::-1]
            _event(writer, {"choices": [choice]})
        self._running.remove(request)
        usage = {"completion_tokens": body["max_tokens"], "prompt_tokens_details": None}
        if self.tells_hits:
            usage["prompt_tokens_details"] = {"cached_tokens": self._hits(body["prompt"], body["max_tokens"])}
        _event(writer, {"choices": [], "usage": usage})
        _event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")


def _event(writer, content):
    data = f"data: {content if isinstance(content, str) else json.dumps(content)}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _whole(writer, status, text):
    writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: {len(text.encode())}\r\n\r\n{text}".encode())


FACTS = {
    **{"recorder": 1, "vllm_version": "0.32.0", "model": "stand-in", "architecture": {}, "vocab_size": 1000},
    **{"gpu": "h100", "gpu_name": "a stand-in", "total_bytes": 80 * 2**30, "quantisation": "bf16"},
    **{"kv_cache_dtype": "bfloat16", "tensor_parallel_size": 1, "gpu_memory_utilization": 0.9, "api_server_count": 1},
    **{"max_num_seqs": 4, "max_num_batched_tokens": 256, "max_model_len": 600, "async_scheduling": False},
    **{"block_size": 16, "num_gpu_blocks": 600, "kv_bytes_per_token": 1024, "kv_cache_bytes": 600 * 16 * 1024},
    **{"enable_prefix_caching": True, "enforce_eager": False, "cudagraph_capture_sizes": [1, 2, 4, 8]},
}
BASE_S, DECODE_S, TOKEN_S = 0.002, 0.0001, 0.00002


def planted_s(num_decodes, num_prefill_tokens):
    return BASE_S + DECODE_S * num_decodes + TOKEN_S * num_prefill_tokens


class StandInRecorder:
    """Prompts are computed whole; nothing is cached."""

    def __init__(self, path, **facts):
        self.facts, self._path = FACTS | facts, path
        path.write_text("")
        self._write(self.facts)
        self._seen = set()

    async def step(self, batch):
        now = time.monotonic()
        for request in batch:
            if id(request) not in self._seen:
                self._seen.add(id(request))
                wall = time.time()
                stamp = {"t": now, "t1": now, "arrival": wall, "wall": wall}
                self._write({"add": f"cmpl-{request.name}-0", "n": request.num_prompt_tokens, **stamp})
        decodes = [r for r in batch if r.num_computed >= r.num_prompt_tokens]
        context, prefills = sum(r.num_computed for r in decodes), []
        for request in decodes:
            request.num_computed += 1
        for request in batch:
            if request not in decodes:
                prefills.append([0, request.num_prompt_tokens])
                request.num_computed = request.num_prompt_tokens
        took_s = planted_s(len(decodes), sum(tokens for _, tokens in prefills))
        begin_s = time.monotonic()
        await asyncio.sleep(took_s)
        device = {"d0": begin_s, "d1": begin_s + took_s}
        host = {"s0": begin_s, "s1": begin_s, "x0": begin_s, "x1": begin_s, "m0": begin_s, "m1": begin_s + took_s}
        end_s = max(time.monotonic(), begin_s + took_s)
        counts = {"nd": len(decodes), "ctx": context, "pre": prefills, "run": len(batch), "wait": 0, "pree": 0}
        free = 599 - sum(-(-r.num_computed // 16) for r in batch)
        self._write({**host, "u0": end_s, "u1": end_s, **device, **counts, "free": max(0, free)})

    def _write(self, line):
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
