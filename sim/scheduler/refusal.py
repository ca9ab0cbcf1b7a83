"""Why the head of the queue stays there."""

from __future__ import annotations

from typing import NamedTuple


class Refusal(NamedTuple):
    """Why the head of the queue was not admitted: what it needed, what there was, what the watermark keeps.

    `reason` is `seats`, `blocks`, `budget`, `chunk` (chunked prefill is off), `interval` (prefills are held back) or
    `preemption` (admission was closed).
    """

    reason: str
    needed: int = 0
    available: int = 0
    watermark: int = 0
