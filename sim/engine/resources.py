"""Host (the engine's thread) and device (the GPU), and a step on its way through both."""

from __future__ import annotations

from dataclasses import dataclass, field

from simbatch.sim.cost.host import GRAPH, NONE, PIECEWISE, HostDraws, HostTimes, NoiseDraws
from simbatch.sim.cost.model import CostModel, Features, Sums, step_ps
from simbatch.sim.scheduler.request import NEVER, Batch, Request


class Host:
    """What vLLM's EngineCore takes on its thread, in ps, and when the device may begin and end beside it."""

    def __init__(self, times: HostTimes, max_capture_size: int, draws: HostDraws | None = None) -> None:
        self.times = times
        self.lag_ps, self.tail_ps = times.lag_ps, times.tail_ps
        self.max_graph_requests = self.max_piecewise_tokens = max_capture_size
        self.draws = draws
        # of a batch, a request, a prefill and a token; whole graphs have none of the last two
        self._launch = {GRAPH: (times.graph.base_ps, times.graph.per_seq_ps, 0, 0)}
        for kind, each in ((PIECEWISE, times.piecewise), (NONE, times.none)):
            self._launch[kind] = (each.base_ps, each.per_seq_ps, each.per_prefill_ps, each.per_token_ps)

    def kind(self, num_requests: int, num_prefills: int, num_tokens: int) -> str:
        """How a batch is launched: a whole CUDA graph, pieces of one, or none."""
        if not num_prefills and num_requests <= self.max_graph_requests:
            return GRAPH
        return PIECEWISE if num_tokens <= self.max_piecewise_tokens else NONE

    def launch_ps(self, num_requests: int, num_prefills: int, num_tokens: int) -> int:
        """How long scheduling and launching a batch takes; the next draw, where launches of its kind are spread."""
        if not num_prefills and num_requests <= self.max_graph_requests:  # as `kind`, one frame less for each launch
            kind = GRAPH
        else:
            kind = PIECEWISE if num_tokens <= self.max_piecewise_tokens else NONE
        base_ps, per_seq_ps, per_prefill_ps, per_token_ps = self._launch[kind]
        mean_ps = base_ps + per_seq_ps * num_requests + per_prefill_ps * num_prefills + per_token_ps * num_tokens
        draws = self.draws
        return mean_ps if draws is None or not draws.draws_for(kind) else draws.launch_ps(mean_ps, kind)

    def draws_for(self, num_decodes: int) -> bool:
        """Whether the launch of so many decodes and nothing else is drawn."""
        return self.draws is not None and self.draws.draws_for(self.kind(num_decodes, 0, num_decodes))

    def update_ps(self, num_requests: int) -> int:
        """How long it takes to take in the tokens of a batch."""
        return self.times.update_base_ps + self.times.update_per_seq_ps * num_requests

    def admit_ps(self, num_prompt_tokens: int) -> int:
        """How long it takes to take in a request."""
        return self.times.admit_base_ps + self.times.admit_per_prompt_token_ps * num_prompt_tokens


class Device:
    """How long it works on a batch, and when it is free."""

    def __init__(self, cost: CostModel, noise: NoiseDraws | None = None) -> None:
        self.cost = cost
        self.noise = noise
        self.free_ps = 0  # end of the batch that was launched last

    def work_ps(self, sums: Sums) -> int:
        """How long it works on a batch; the next draw, if its times are noisy."""
        duration_ps = step_ps(self.cost, sums)
        if self.noise is None:
            return duration_ps
        return self.noise.step_ps(duration_ps, sums[2] > 0)


NOTHING = Features(0, 0, 0, 0, 0, 0)


@dataclass(slots=True, eq=False)
class Step:
    """A scheduled batch; times in ps. An empty one has no number and takes no time."""

    batch: Batch
    schedule_ps: int  # S: schedule() begins on the host
    launched_ps: int  # L: the launch has returned
    start_ps: int  # the device begins
    end_ps: int  # D: the device is done
    features: Features = NOTHING
    number: int = NEVER
    num_regular: int = 0  # decodes whose previous token came with the step before
    noted: list[Request] = field(default_factory=list)  # those who get a token that is not such a decode's
    updated_ps: int = NEVER  # U: the update is over, its tokens exist
