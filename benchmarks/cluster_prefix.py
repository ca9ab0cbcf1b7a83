"""Routers on the Mooncake trace: `python -m benchmarks.cluster_prefix [--trace FILE] [--seeds N] [--count]`.

Hit rates, TTFT and how uneven the load is, as means over resamplings of the trace in blocks of time, with 95 %
intervals. `--count` replays one run's steps through a prefix cache of its own, written for this (`Cache`), and counts
whose hits are the same.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from benchmarks import parser_of
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.search import run_resolved
from simbatch.sim.statistics import mean_interval
from simbatch.sim.workload import open_workload

TRACE = Path(__file__).parents[2] / "shared" / "traces" / "mooncake" / "conversation_trace.jsonl"
ROUTERS = ("random", "round_robin", "least_requests", "least_tokens", "prefix_aware")
FIGURES = {
    "hits": lambda s: 100 * s["simbatch"]["cached_tokens_share"],
    "mean TTFT (s)": lambda s: s["mean_ttft_ms"] / 1000,
    "P99 TTFT (s)": lambda s: s["p99_ttft_ms"] / 1000,
    "load, most/mean": lambda s: s["simbatch"]["cluster"]["imbalance"]["share_of_load"],
}


def scenario(trace: Path, replicas: int, router: str, **settings: Any) -> Scenario:
    """The trace at its own rate on H100s with the 8B model."""
    return Scenario.from_dict(
        {
            "profile": "h100-llama-3.1-8b-bf16",
            "engine": {"max_model_len": 131_072},
            "cluster": {"replicas": replicas, "router": {"name": router}},
            "workload": {"trace": {"path": str(trace), "format": "mooncake", **settings}},
        }
    )


class Cache:
    """vLLM's prefix cache, block by block: a queue of free blocks, the least recently used first."""

    def __init__(self, num_blocks: int) -> None:
        self.queue: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self.key_of: dict[int, Any] = {}
        self.blocks_of: dict[Any, list[int]] = {}  # the oldest first
        self.refs = [0] * num_blocks
        self.held: dict[int, list[int]] = {}  # request -> its blocks
        self.named: dict[int, int] = {}  # request -> how many of them have been looked at

    def hit(self, request: int, keys: list[Any], most: int) -> int:
        """Hold the blocks of the longest cached prefix; how many they are."""
        held = self.held[request] = []
        for key in keys[:most]:
            if not self.blocks_of.get(key):
                break
            block = self.blocks_of[key][0]
            if not self.refs[block]:
                del self.queue[block]
            self.refs[block] += 1
            held.append(block)
        return len(held)

    def grow(self, request: int, keys: list[Any], num_tokens: int, block_size: int) -> None:
        """Blocks for so many tokens; the full ones of a prompt's hashed beginning get their names."""
        held = self.held[request]
        while len(held) < -(-num_tokens // block_size):
            block, _ = self.queue.popitem(last=False)
            if (key := self.key_of.pop(block, None)) is not None:
                self.blocks_of[key].remove(block)
            self.refs[block] = 1
            held.append(block)
        begin, self.named[request] = self.named.get(request, 0), num_tokens // block_size
        for i in range(begin, num_tokens // block_size):
            if held[i] not in self.key_of:
                key = keys[i] if i < len(keys) else ("own", request, i)
                self.key_of[held[i]] = key
                self.blocks_of.setdefault(key, []).append(held[i])

    def release(self, request: int) -> None:
        """Named blocks to the end of the queue, the last one first; others to its front."""
        for block in reversed(self.held.pop(request)):
            self.refs[block] -= 1
            if not self.refs[block]:
                self.queue[block] = None
                if block not in self.key_of:
                    self.queue.move_to_end(block, last=False)


def keys_of(trace: Scenario, block_size: int) -> list[list[Any]]:
    """Of each request, a name for each block of its hashed beginning: all hashes up to it, and its place."""
    source = open_workload(trace.workload, seed=trace.seed, folder=trace.folder)
    keys: list[list[Any]] = []
    chained: dict[tuple[int, int], int] = {}
    for chunk in source.chunks():
        for hashes, num_prompt in zip(chunk.hash_ids or [], chunk.num_prompt_tokens, strict=True):
            link, links = 0, []
            for one in hashes:
                link = chained.setdefault((link, one), len(chained) + 1)
                links.append(link)
            covered = min(num_prompt, len(hashes) * source.hash_block_tokens) // block_size
            per_hash = source.hash_block_tokens // block_size
            keys.append([(links[i // per_hash], i % per_hash) for i in range(covered)])
    return keys


def count(trace: Scenario, record: RunRecord) -> tuple[int, int, int]:
    """Requests whose hits are counted alike, all requests, tokens hit by this count."""
    block_size, prompts = record.block_size, record.requests.num_prompt_tokens.tolist()
    keys, same, tokens, total = keys_of(trace, block_size), 0, 0, 0
    for number, log in enumerate(record.replicas):
        cache, seen, events = Cache(log.num_gpu_blocks - 1), set[int](), []
        for row in record.steps or ():
            if row.replica == number:
                events += [(row.schedule_ps, 1, row.step, row), (row.updated_ps, 0, row.step, row)]
        for _, is_schedule, _, row in sorted(events, key=lambda event: event[:3]):
            if not is_schedule:
                for request in row.finished:
                    cache.release(request)
                continue
            for request, num_tokens, computed in row.scheduled:
                if request not in seen:
                    seen.add(request)
                    hits = cache.hit(request, keys[request], (prompts[request] - 1) // block_size) * block_size
                    total, tokens, same = total + 1, tokens + hits, same + (hits == computed)
                cache.grow(request, keys[request], computed + num_tokens, block_size)
    return same, total, tokens


def interval(values: list[float]) -> str:
    """Mean and half width of the 95 % t interval."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    known = mean_interval(values)
    return f"{known.estimate:.2f} ± {known.half_width:.2f}"


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="only so many requests")
    parser.add_argument("--count", action="store_true")
    options = parser.parse_args()
    limit = {"limit": options.limit} if options.limit else {}
    if options.count:
        for router in ("round_robin", "prefix_aware"):
            one = scenario(options.trace, options.replicas, router, **limit)
            record = run_resolved(resolve(one), steps=True).record
            same, total, tokens = count(one, record)
            share = tokens / record.requests.num_prompt_tokens.sum()
            own = record.requests.num_cached_tokens.sum() / record.requests.num_prompt_tokens.sum()
            print(
                f"{router}: {same:,} of {total:,} requests have the hits of an independent count; hit rate "
                f"{100 * own:.3f} %, counted {100 * share:.3f} %; {record.num_preemptions} preemptions",
                flush=True,
            )
        return
    print("| router | " + " | ".join(FIGURES) + " |\n|---|" + "---|" * len(FIGURES))
    for router in ROUTERS:
        values: dict[str, list[float]] = {name: [] for name in FIGURES}
        for seed in range(options.seeds):
            one = scenario(options.trace, options.replicas, router, resample_blocks=20, **limit)
            summary = run_resolved(resolve(one.override({"seed": seed}))).summary
            for name, of in FIGURES.items():
                values[name].append(of(summary))
        print(f"| `{router}` | " + " | ".join(map(interval, values.values())) + " |", flush=True)


if __name__ == "__main__":
    main()
