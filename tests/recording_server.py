"""A recorder for the streaming server of the tests: every step as `simbatch.vllm_recorder` writes it, times planted."""

import asyncio
import json
import time

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
