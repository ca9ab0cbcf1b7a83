"""A batch size that follows the latency users feel."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from simbatch.sim.plugins.policy import EngineView, Policy, RequestView

COMFORT = 0.8  # below this share of the target there is room to grow


class Adaptive(Policy):
    """Grow the batch while latency is well below the target, shrink it above.

    After every `adjustment_interval` finished requests their mean latency decides: below 80 % of the target the batch
    size grows by a half (`multiplicative`) or by one (`additive`), at least by one; above the target it shrinks to 0.7;
    always within the bounds. The latency is the one whose target is set: `target_tpot_ms` (50 if none is), which
    grows with the batch itself, `target_ttft_ms` or `target_e2el_ms`. Source: `AdaptiveBatchSizer` of the source
    material; Crankshaw et al., Clipper (NSDI 2017, section 4.3.1, figure 4), whose AIMD is `additive` with a smaller
    step down: the batch settles where the latency meets the target, far above the throughput of small batches.
    """

    known_as = "Clipper"
    disciplines: ClassVar = ("continuous", "static")

    min_batch_size: Annotated[int, Field(ge=1, description="where it starts, and its lower bound")] = 1
    max_batch_size: Annotated[int, Field(ge=1, description="upper bound")] = 64
    target_tpot_ms: Annotated[
        Annotated[float, Field(gt=0)] | None, Field(description="steer on TPOT; 50 if no target is given")
    ] = None
    target_ttft_ms: Annotated[Annotated[float, Field(gt=0)] | None, Field(description="or on TTFT")] = None
    target_e2el_ms: Annotated[Annotated[float, Field(gt=0)] | None, Field(description="or on E2EL")] = None
    adjustment_interval: Annotated[int, Field(ge=1, description="finished requests per adjustment")] = 10
    growth: Annotated[
        Literal["multiplicative", "additive"], Field(description="by a half, at least by one; or by one")
    ] = "multiplicative"

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
