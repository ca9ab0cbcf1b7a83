"""The `host` and `front_end` of a profile, checked when read: what a server's processes take beside the device."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from simbatch.sim.clock import to_ps
from simbatch.sim.cost.host import GRAPH, NONE, PIECEWISE, FrontEndTimes, HostTimes, LaunchDraws, LaunchTimes
from simbatch.sim.cost.step_time import Ratios
from simbatch.sim.strict import Strict

# Bounds that only a wrong unit breaks, so that sums stay inside 64 bits: a minute for a launch, a second for a request
# or a token of it.
Once = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]
Each = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Measured = Annotated[str, Field(min_length=1, max_length=10_000)]


class GraphLaunch(Strict):
    """Launches of batches without prefills, as one CUDA graph."""

    base_s: Once = Field(default=0.0, description="of any such launch, s")
    per_seq_s: Each = Field(default=0.0, description="per request of the batch, s")

    @model_validator(mode="before")
    @classmethod
    def _has_no_prefills(cls, value: Any) -> Any:
        if isinstance(value, dict) and (keys := [key for key in ("per_prefill_s", "per_token_s") if key in value]):
            raise ValueError(f"a graph's launch has no prefills, so there is no {keys[0]}: base_s and per_seq_s alone")
        return value


class OtherLaunch(Strict):
    """Launches of batches with prefills, or too large for a graph."""

    base_s: Once = Field(default=0.0, description="of any such launch, s")
    per_seq_s: Each = Field(default=0.0, description="per request of the batch, s")
    per_prefill_s: Each = Field(default=0.0, description="per entry that is not a decode, s")
    per_token_s: Each = Field(default=0.0, description="per scheduled token, s")


class LaunchSection(Strict):
    """Host time to schedule and launch a batch, by kind of launch."""

    graph: GraphLaunch = GraphLaunch()
    piecewise: OtherLaunch = OtherLaunch()
    none: OtherLaunch = OtherLaunch()


class Update(Strict):
    """Host time to take a step's tokens in."""

    base_s: Once = Field(default=0.0, description="of any step, s")
    per_seq_s: Each = Field(default=0.0, description="per request of the batch, s")


class Admit(Strict):
    """Host time to take a request in."""

    base_s: Once = Field(default=0.0, description="of any request, s")
    per_prompt_token_s: Each = Field(default=0.0, description="per token of its prompt, s")


class Spread(Strict):
    """How launches are spread round their mean, by kind; a kind without quantiles always takes its mean."""

    graph: Ratios | None = None
    piecewise: Ratios | None = None
    none: Ratios | None = None

    def draws(self, seed: int, replica: int = 0) -> LaunchDraws | None:
        """Draws for one run of one replica; None where no kind is spread."""
        given = {GRAPH: self.graph, PIECEWISE: self.piecewise, NONE: self.none}
        tables = {kind: ratios.table() for kind, ratios in given.items() if ratios is not None}
        return LaunchDraws(tables, seed, replica) if tables else None


class LaunchGrowth(Strict):
    """How well it is known what a launch grows by with each request at once; beside `around` of them it is known."""

    around: float = Field(ge=0, description="requests that ran beside prefills, mean of the runs")
    launch_s: float = Field(gt=0, description="of a launch beside so many")
    error_s: float = Field(ge=0, description="standard error of what it grows by with each request")


class HostSection(Strict):
    """What the engine's thread takes; what is left out is 0."""

    source: Measured | None = Field(default=None, description="where it was measured")
    assumed: bool = Field(
        default=False, description="whether it is another machine's, or nobody's, for want of a better"
    )
    launch: LaunchSection = Field(default=LaunchSection(), description="to schedule and launch a batch")
    update: Update = Field(default=Update(), description="to take a step's tokens in")
    admit: Admit = Field(default=Admit(), description="to take a request in")
    lag_s: Once = Field(default=0.0, description="from the begin of schedule() to the device's earliest start, s")
    tail_s: Once = Field(default=0.0, description="from the return of a launch to the device's earliest end, s")
    spread: Spread = Field(default=Spread(), description="quantiles of launch time over its mean, by kind of launch")
    growth: LaunchGrowth | None = Field(default=None, description="how well launches' growth with requests is known")

    def times(self) -> HostTimes | None:
        """The times, rounded to ps; None where all of them are 0."""
        times = HostTimes(
            graph=_launch(self.launch.graph),
            piecewise=_launch(self.launch.piecewise),
            none=_launch(self.launch.none),
            update_base_ps=to_ps(self.update.base_s),
            update_per_seq_ps=to_ps(self.update.per_seq_s),
            admit_base_ps=to_ps(self.admit.base_s),
            admit_per_prompt_token_ps=to_ps(self.admit.per_prompt_token_s),
            lag_ps=to_ps(self.lag_s),
            tail_ps=to_ps(self.tail_s),
        )
        return None if times == HostTimes() else times


class FrontEndSection(Strict):
    """What a server does to a request on its way in, and to its tokens on their way out; what is left out is 0."""

    source: Measured | None = Field(default=None, description="where it was measured")
    assumed: bool = Field(
        default=False, description="whether it is another machine's, or nobody's, for want of a better"
    )
    per_request_s: Once = Field(default=0.0, description="to take a request in, s")
    per_prompt_token_s: Each = Field(default=0.0, description="per token of its prompt, s")
    per_chunk_s: Each = Field(default=0.0, description="to send one request's tokens of one step, s")
    network_s: Once = Field(default=0.0, description="from the server to the client; delays nothing else, s")

    def times(self) -> FrontEndTimes | None:
        """The times, rounded to ps; None where all of them are 0."""
        times = FrontEndTimes(
            per_request_ps=to_ps(self.per_request_s),
            per_prompt_token_ps=to_ps(self.per_prompt_token_s),
            per_chunk_ps=to_ps(self.per_chunk_s),
            network_ps=to_ps(self.network_s),
        )
        return None if times == FrontEndTimes() else times


class HostFile(Strict):
    """A file of these two sections alone: a machine that was measured, without a model on its GPU."""

    name: str = Field(default="host", min_length=1, max_length=200)
    host: HostSection | None = None
    front_end: FrontEndSection | None = None


def _launch(section: GraphLaunch | OtherLaunch) -> LaunchTimes:
    return LaunchTimes(**{f"{key.removesuffix('_s')}_ps": to_ps(value) for key, value in section})
