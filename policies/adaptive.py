"""A batch size that follows the latency users feel."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

from simbatch.policies.base import EngineView, Policy, RequestView

COMFORT = 0.8  # below this share of the target there is room to grow


class Adaptive(Policy):
    """Grow the batch while latency is well below the target, shrink it above (AIMD-like feedback).

    After every `adjustment_interval` finished requests their mean latency decides: below 80 % of the target the batch
    size grows by a half (`multiplicative`) or by one (`additive`), at least by one; above the target it shrinks to 0.7;
    always within the bounds. The latency is the one whose target is set: `target_tpot_ms` (50 if none is), which
    grows with the batch itself, `target_ttft_ms` or `target_e2el_ms`.
    """

    disciplines: ClassVar = ("continuous", "static")

    min_batch_size: Annotated[int, Ge(1)] = 1
    max_batch_size: Annotated[int, Ge(1)] = 64
    target_tpot_ms: Annotated[float, Gt(0)] | None = None
    target_ttft_ms: Annotated[float, Gt(0)] | None = None
    target_e2el_ms: Annotated[float, Gt(0)] | None = None
    adjustment_interval: Annotated[int, Ge(1)] = 10
    growth: Literal["multiplicative", "additive"] = "multiplicative"

    def __post_init__(self) -> None:
        if self.min_batch_size > self.max_batch_size:
            raise ValueError(f"min_batch_size must not be above max_batch_size ({self.max_batch_size})")
        targets = [self.target_tpot_ms, self.target_ttft_ms, self.target_e2el_ms]
        if sum(target is not None for target in targets) > 1:
            raise ValueError("only one of target_tpot_ms, target_ttft_ms and target_e2el_ms can be steered on")
        if targets == [None, None, None]:
            self.target_tpot_ms = 50.0

    def start(self, engine: EngineView) -> None:
        """Begin with the smallest batch."""
        self._max_batch_size = min(self.max_batch_size, engine.max_num_seqs)
        self._batch_size = min(self.min_batch_size, self._max_batch_size)
        self._latencies_ms: list[float] = []

    def seats(self, engine: EngineView) -> int:
        """The batch size of the moment."""
        return self._batch_size

    def finished(self, request: RequestView) -> None:
        """Collect latencies; adjust when there are enough."""
        latency_ms = self._latency_ms(request)
        if latency_ms is None:  # a single output token has no time per output token
            return
        self._latencies_ms.append(latency_ms)
        if len(self._latencies_ms) >= self.adjustment_interval:
            self._adjust(sum(self._latencies_ms) / len(self._latencies_ms))
            self._latencies_ms.clear()

    def _latency_ms(self, request: RequestView) -> float | None:
        if self.target_tpot_ms is not None:
            seconds = request.tpot_s
        elif self.target_ttft_ms is not None:
            seconds = request.ttft_s
        else:
            seconds = request.e2el_s
        return None if seconds is None else seconds * 1000

    def _adjust(self, mean_ms: float) -> None:
        target_ms = self.target_tpot_ms or self.target_ttft_ms or self.target_e2el_ms or 0.0
        size = self._batch_size
        if mean_ms < COMFORT * target_ms:
            grown = size + size // 2 if self.growth == "multiplicative" else size + 1
            self._batch_size = min(max(grown, size + 1), self._max_batch_size)  # int(1 * 1.5) would stay at 1
        elif mean_ms > target_ms:
            self._batch_size = max(int(size * 0.7), min(self.min_batch_size, self._max_batch_size))
