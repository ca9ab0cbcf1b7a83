"""Mooncake's traces (ms, 512 tokens a hash) and vLLM's timed_trace (s, 16), which have the same keys.

The number of hashes in the first row tells them apart.
"""

from collections.abc import Callable

from simbatch.sim.workload.columns import Columns, Format, Row

_COLUMNS = Columns("timestamp", "input_length", "output_length", hash_ids="hash_ids")


def _covered_by(tokens: int) -> Callable[[Row], bool]:
    def fits(row: Row) -> bool:
        hashes, prompt = row.get("hash_ids"), row.get("input_length")
        if isinstance(hashes, str) and isinstance(prompt, str) and prompt.isdigit():
            hashes, prompt = hashes.strip("[] ").replace(",", " ").split(), int(prompt)
        if not (hashes and isinstance(hashes, list) and type(prompt) is int):
            return True
        return prompt // tokens <= len(hashes) <= -(-prompt // tokens)

    return fits


FORMATS = [
    Format("mooncake", _COLUMNS, "ms", 512, "jsonl", _covered_by(512), "github.com/kvcache-ai/Mooncake"),
    Format("timed_trace", _COLUMNS, "s", 16, "jsonl", _covered_by(16), "vllm bench serve --dataset-name timed_trace"),
]
