"""The `workload` section of a scenario: synthetic requests, or a trace."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from simbatch.sim.workload.arrival_model import Arrival, ClosedLoop, Gamma
from simbatch.sim.workload.length_model import Length
from simbatch.sim.workload.section import Burstiness, Count, Mistake, Rate, Section, Share, refuse, rule_error
from simbatch.sim.workload.trace_model import Trace

PRIORITY_NAMES = {"high": 0, "normal": 1, "low": 2}
_SYNTHETIC = ("num_prompts", "request_rate", "burstiness", "rescale", "arrival", "prompt_len", "output_len", "prefix")
_SHARED = ("request_rate", "burstiness", "rescale", "max_concurrency")  # may stand in `arrival` or beside it


class Prefix(Section):
    """Prefixes that several prompts begin with, in front of their `prompt_len` tokens (as `--random-prefix-len`)."""

    num_prefixes: Count = Field(default=1, description="how many different prefixes there are, drawn alike")
    prefix_len: Annotated[int, Field(ge=1, le=2**20)] = Field(
        description="tokens of each prefix, added to prompt_len as vllm bench's random and prefix_repetition do"
    )
    share: Share = Field(default=1.0, description="share of the requests that begin with one of them")


class Workload(Section):
    """Which requests arrive, and when.

    Either synthetic (`num_prompts`, `prompt_len`, `output_len` and `request_rate` or `arrival`) or a `trace`;
    `priorities` and `max_concurrency` go with both.
    """

    num_prompts: Count | None = Field(default=None, description="how many requests arrive")
    request_rate: Rate | None = Field(
        default=None, description="requests per second, as in vllm bench serve; or give `arrival`"
    )
    burstiness: Burstiness | None = Field(
        default=None, description="shape of the gamma gaps between arrivals: 1 is Poisson, less is burstier (default 1)"
    )
    rescale: bool | None = Field(
        default=None,
        description="put the last arrival at num_prompts / request_rate, as vLLM does (default true); theory: false",
    )
    arrival: Arrival | None = Field(default=None, description="another arrival process than gamma gaps, by `process`")
    prompt_len: Length | None = Field(default=None, description="distribution of the prompts' lengths, tokens")
    output_len: Length | None = Field(default=None, description="distribution of the outputs' lengths, tokens")
    priorities: dict[str | int, Share] | None = Field(
        default=None, description="share of each class: high, normal, low, or integers (lower goes first)"
    )
    prefix: Prefix | None = Field(default=None, description="prefixes that prompts share")
    max_concurrency: Count | None = Field(
        default=None, description="most requests in the system at once; later ones are sent when one has ended"
    )
    trace: Trace | None = Field(default=None, description="requests from a file instead")

    @field_validator("priorities")
    @classmethod
    def _check_priorities(cls, shares: dict[str | int, float] | None) -> dict[str | int, float] | None:
        if shares is None:
            return None
        unknown = next((key for key in shares if priority_of(key) is None), None)
        if unknown is not None:
            raise rule_error(
                f"priority {unknown!r} must be high, normal, low or an integer", "name the classes by these"
            )
        twice = [str(level) for level, n in Counter(map(priority_of, shares)).items() if n > 1]
        if twice:
            raise rule_error(f"priority {twice[0]} is given twice", "high is 0, normal is 1, low is 2")
        total = sum(shares.values())
        if abs(total - 1) > 1e-6:
            raise rule_error(f"shares must sum to 1, and sum to {total:g}", "change them")
        return shares

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self, self._trace_mistakes() if self.trace else self._synthetic_mistakes())
        return self

    def _trace_mistakes(self) -> list[Mistake]:
        given = [key for key in _SYNTHETIC if getattr(self, key) is not None]
        mends = {"num_prompts": "use trace.limit", "request_rate": "use trace.rate_scale"}
        rule = "a trace brings its own arrivals and lengths"
        return [Mistake(key, rule, f"{mends.get(key, 'leave it out')}, or drop the trace") for key in given]

    def _synthetic_mistakes(self) -> list[Mistake]:
        if not any(getattr(self, key) is not None for key in _SYNTHETIC):
            rule = "a workload needs num_prompts, request_rate, prompt_len and output_len, or a trace"
            raise rule_error(rule, "for example {num_prompts: 100, request_rate: 2, prompt_len: ..., output_len: ...}")
        required = ("num_prompts", "prompt_len", "output_len")
        missing = [Mistake(key) for key in required if getattr(self, key) is None]
        return missing + self._arrival_mistakes()

    def _arrival_mistakes(self) -> list[Mistake]:
        if self.arrival is None:
            return [] if self.request_rate is not None else [Mistake("request_rate")]
        fields, name = type(self.arrival).model_fields, f"arrival process {self.arrival.process}"
        mistakes = []
        for key in _SHARED:
            if key in fields and getattr(self.arrival, key) is not None and getattr(self, key) is not None:
                mistakes.append(Mistake(key, f"stands both here and in arrival.{key}", "keep one of them"))
            elif key not in fields and getattr(self, key) is not None and key != "max_concurrency":
                mistakes.append(Mistake(key, f"{name} has no {key}", "leave it out"))
        needed = "max_concurrency" if isinstance(self.arrival, ClosedLoop) else "request_rate"
        if needed in fields and getattr(self.arrival, needed) is None and getattr(self, needed) is None:
            mistakes.append(Mistake("arrival", f"{name} needs {needed}", f"add arrival.{needed}"))
        return mistakes

    def resolved_arrival(self) -> Arrival:
        """The arrival process with what stands beside it (`request_rate`, ...) filled in; gamma when none is named."""
        arrival = self.arrival or Gamma(process="gamma")
        fields = type(arrival).model_fields
        beside = {key: getattr(self, key) for key in _SHARED if key in fields and getattr(self, key) is not None}
        return arrival.model_copy(update=beside)

    def priority_shares(self) -> list[tuple[int, float]]:
        """Priority levels and their shares, lowest level first; empty when all have the same priority."""
        return sorted((priority_of(key) or 0, share) for key, share in (self.priorities or {}).items())


def priority_of(key: str | int) -> int | None:
    """The level that a class name or an integer (also as text) means; None when it means none."""
    if isinstance(key, str):
        text = key.strip()
        if text in PRIORITY_NAMES:
            return PRIORITY_NAMES[text]
        if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 11):
            return None
        key = int(text)
    return key if -(2**31) <= key < 2**31 else None
