"""Mooncake's traces (ms, 512 tokens a hash), vLLM's timed_trace and Bailian's (s, 16), which have the same keys.

The number of hashes in the first row tells the first two apart; session_id and delay are Mooncake's as aiperf and
Dynamo write conversations, chat_id and parent_chat_id are Bailian's.
"""

from collections.abc import Callable

from simbatch.sim.workload.formats import Columns, Format, Row

_COLUMNS = Columns("timestamp", "input_length", "output_length", hash_ids="hash_ids")
_OF_SESSIONS = _COLUMNS._replace(session="session_id", delay="delay")
_OF_CHATS = _COLUMNS._replace(request_id="chat_id", parent="parent_chat_id")


def _covered_by(tokens: int, *others: str) -> Callable[[Row], bool]:
    """Rows with so many tokens a hash, and with no column of another format's."""

    def fits(row: Row) -> bool:
        if any(name in row for name in others):
            return False
        hashes, prompt = row.get("hash_ids"), row.get("input_length")
        if isinstance(hashes, str) and isinstance(prompt, str) and prompt.isdigit():
            hashes, prompt = hashes.strip("[] ").replace(",", " ").split(), int(prompt)
        if not (hashes and isinstance(hashes, list) and type(prompt) is int):
            return True
        return prompt // tokens <= len(hashes) <= -(-prompt // tokens)

    return fits


FORMATS = [
    Format("mooncake", _OF_SESSIONS, "ms", 512, "jsonl", _covered_by(512, "chat_id"), "github.com/kvcache-ai/Mooncake"),
    Format(
        "timed_trace",
        _COLUMNS,
        "s",
        16,
        "jsonl",
        _covered_by(16, "chat_id", "session_id", "delay"),
        "vllm bench serve --dataset-name timed_trace",
    ),
    Format(
        "bailian",
        _OF_CHATS,
        "s",
        16,
        "jsonl",
        lambda row: "chat_id" in row,
        "github.com/alibaba-edu/qwen-bailian-usagetraces-anon",
    ),
]
