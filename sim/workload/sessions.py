"""The `sessions` section of a workload: users and agents whose turns wait for answers, drawn from distributions."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simbatch.sim.strict import Count, Mistake, Seconds, Share, Strict, Tokens, refuse
from simbatch.sim.workload.arrivals import AllAtOnce, Arrival, ClosedLoop
from simbatch.sim.workload.lengths import Length


class LognormalTime(Strict):
    """Lognormal with exactly this mean and coefficient of variation before clipping."""

    distribution: Literal["lognormal"]
    mean: Seconds = Field(gt=0, description="mean before clipping, s")
    cv: Annotated[float, Field(ge=0, le=100)] = Field(description="standard deviation / mean, before clipping")
    max: Seconds | None = Field(default=None, description="longer draws are set to it, s")


class ExponentialTime(Strict):
    """Exponential: as long again from any moment on."""

    distribution: Literal["exponential"]
    mean: Seconds = Field(gt=0, description="mean before clipping, s")
    max: Seconds | None = Field(default=None, description="longer draws are set to it, s")


class UniformTime(Strict):
    """Every time from `min` to `max` alike."""

    distribution: Literal["uniform"]
    min: Seconds = Field(description="shortest, s")
    max: Seconds = Field(description="longest, s")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            refuse(self, [Mistake("min", f"must be at most max ({self.max:g})", "swap them or lower it")])
        return self


Time = Seconds | Annotated[LognormalTime | ExponentialTime | UniformTime, Field(discriminator="distribution")]


class Branch(Strict):
    """Turns that fan out: an agent sends sub-requests beside each other, and goes on when all have ended."""

    share: Share = Field(description="share of the turns that do, of those with a turn behind them")
    width: Length = Field(description="distribution of how many sub-requests there are")


class Sessions(Strict):
    """So many sessions, each of some turns; a turn goes out when the one before it has ended and its delay has passed.

    A prompt is the system prompt, all that was said before, and what is new.
    """

    num_sessions: Count = Field(description="how many sessions there are")
    arrival: Arrival | None = Field(default=None, description="when they begin: request_rate is sessions per second")
    concurrency: Count | None = Field(
        default=None, description="users: so many sessions at once, the next begins when another has ended"
    )
    turns: Length = Field(description="distribution of the turns of a session")
    new_tokens: Length = Field(description="distribution of what is new in a turn's prompt, tokens")
    output_len: Length = Field(description="distribution of the outputs' lengths, tokens")
    system_prompt_tokens: Annotated[int, Field(ge=0, le=2**20)] = Field(
        default=0, description="tokens that the first prompt of a session begins with"
    )
    num_system_prompts: Count = Field(default=1, description="how many different ones there are, drawn alike")
    think_time_s: Time | None = Field(default=None, description="a person's pause before a later turn, s")
    tool_time_s: Time | None = Field(default=None, description="how long a tool takes before a later turn, s")
    tool_share: Share | None = Field(
        default=None, description="share of the later turns that follow a tool; needed where there are both times"
    )
    branch: Branch | None = Field(default=None, description="turns that fan out into parallel sub-requests")
    max_context: Tokens | None = Field(
        default=None, description="a session ends before a prompt and its answer are longer, tokens"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        both = self.think_time_s is not None and self.tool_time_s is not None
        mistakes = []
        if (self.arrival is None) == (self.concurrency is None):
            rule, mend = "needs one of arrival and concurrency", "for example concurrency: 50"
            mistakes.append(Mistake("arrival", rule, mend))
        if isinstance(self.arrival, ClosedLoop):
            mistakes.append(Mistake("arrival", "users are sessions.concurrency", "write concurrency: USERS instead"))
        elif getattr(self.arrival, "request_rate", 0) is None:
            mistakes.append(Mistake("arrival", "needs request_rate, sessions per second", "add arrival.request_rate"))
        if both and self.tool_share is None:
            mistakes.append(
                Mistake("tool_share", "tool_share is needed beside both think_time_s and tool_time_s", "add it")
            )
        if not both and self.tool_share is not None:
            rule = "says nothing without both think_time_s and tool_time_s"
            mistakes.append(Mistake("tool_share", rule, "leave it out, or add the other time"))
        refuse(self, mistakes)
        return self

    def begins(self) -> Arrival:
        """When sessions begin: all at once where users take them in turn."""
        return self.arrival or AllAtOnce(process="all_at_once")
