"""The `workload` section of a scenario: synthetic requests, a mix of several tenants' ones, or a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import gcd, inf
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from simbatch.sim.json_values import Burstiness, Count, Mistake, Rate, Share, Strict, priority_of, refuse, rule_error
from simbatch.sim.workload.arrivals import Arrival, ClosedLoop, Gamma
from simbatch.sim.workload.formats import Trace
from simbatch.sim.workload.sessions import Length, Sessions

MAX_NAME = 100
MAX_HASHES = 4096  # of one prefix
REQUIRED = ("num_prompts", "prompt_len", "output_len")
SHARED = ("request_rate", "burstiness", "rescale", "max_concurrency")  # may stand in `arrival` or beside it


class TrafficShape(Strict):
    """How many requests arrive, when, and how long they are."""

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

    @model_validator(mode="before")
    @classmethod
    def _infinite_rate(cls, data: Any) -> Any:
        """`request_rate: inf` is `arrival: {process: all_at_once}`, where burstiness says nothing, as in vLLM."""
        if not isinstance(data, dict) or "arrival" in data:
            return data
        rate = data.get("request_rate")
        if rate == inf or (isinstance(rate, str) and rate.lower() in ("inf", "infinity")):
            kept = {key: value for key, value in data.items() if key not in ("request_rate", "burstiness")}
            return {**kept, "arrival": {"process": "all_at_once"}}
        return data

    def _synthetic_mistakes(self) -> list[Mistake]:
        missing = [Mistake(key) for key in REQUIRED if getattr(self, key) is None]
        return missing + self._arrival_mistakes()

    def _arrival_mistakes(self) -> list[Mistake]:
        if self.arrival is None:
            return [] if self.request_rate is not None else [Mistake("request_rate")]
        fields, name = type(self.arrival).model_fields, f"arrival process {self.arrival.process}"
        mistakes = []
        for key in SHARED:
            beside = getattr(self, key, None)
            if key in fields and getattr(self.arrival, key) is not None and beside is not None:
                mistakes.append(Mistake(key, f"stands both here and in arrival.{key}", "keep one of them"))
            elif key not in fields and beside is not None and key != "max_concurrency":
                mistakes.append(Mistake(key, f"{name} has no {key}", "leave it out"))
        needed = "max_concurrency" if isinstance(self.arrival, ClosedLoop) else "request_rate"
        if needed in fields and getattr(self.arrival, needed) is None and getattr(self, needed, None) is None:
            mistakes.append(Mistake("arrival", f"{name} needs {needed}", f"add arrival.{needed}"))
        return mistakes

    def resolved_arrival(self) -> Arrival:
        """The arrival process with what stands beside it (`request_rate`, ...) filled in; gamma when none is named."""
        arrival = self.arrival or Gamma(process="gamma")
        given = {key: getattr(self, key, None) for key in SHARED if key in type(arrival).model_fields}
        return arrival.model_copy(update={key: value for key, value in given.items() if value is not None})


class Part(TrafficShape):
    """One tenant's requests among those of a `mix`."""

    tenant: Annotated[str, Field(max_length=MAX_NAME)] = Field(description="whose requests these are")
    priority: str | int | None = Field(
        default=None, description="of all of them: high, normal, low, or an integer (lower goes first)"
    )

    @field_validator("tenant")
    @classmethod
    def _check_tenant(cls, name: str) -> str:
        return checked_name(name)

    @field_validator("priority")
    @classmethod
    def _check_priority(cls, priority: str | int | None) -> str | int | None:
        if priority is not None and priority_of(priority) is None:
            raise rule_error("must be high, normal, low or an integer", "lower goes first; leave it out for 0")
        return priority

    @model_validator(mode="after")
    def _check(self) -> Self:
        mistakes = self._synthetic_mistakes()
        if isinstance(self.arrival, ClosedLoop):
            rule = "a closed loop cannot be part of a mix: its arrivals depend on the answers"
            mistakes = [Mistake("arrival", rule, "take a process with times of its own: gamma, constant, on_off")]
        refuse(self, mistakes)
        return self


def checked_name(name: str) -> str:
    """A tenant's name, when it can be one."""
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise rule_error(f"the tenant {name!r} has no name to show", "give it letters, without spaces round them")
    return name


_SYNTHETIC = (*TrafficShape.model_fields, "prefix")
_SHARES = ("priorities", "tenants")


class Prefix(Strict):
    """Prefixes that several prompts begin with, in front of their `prompt_len` tokens (as `--random-prefix-len`)."""

    num_prefixes: Count = Field(default=1, description="how many different prefixes there are, drawn alike")
    prefix_len: Annotated[int, Field(ge=1, le=2**20)] = Field(
        description="tokens of each prefix, added to prompt_len as vllm bench's random and prefix_repetition do"
    )
    share: Share = Field(default=1.0, description="share of the requests that begin with one of them")
    zipf: Annotated[float, Field(gt=0, le=10)] | None = Field(
        default=None, description="the k-th of them is asked for as often as 1 / k ** zipf; default: all alike"
    )
    common_len: Annotated[int, Field(ge=1, le=2**20)] | None = Field(
        default=None, description="first tokens that all prefixes share, as a system prompt before a document"
    )

    @model_validator(mode="after")
    def _common_is_part(self) -> Self:
        if (self.common_len or 0) >= self.prefix_len:
            mistake = Mistake("common_len", f"must be less than prefix_len ({self.prefix_len})", "lower it")
            refuse(self, [mistake])
        if self.prefix_len > MAX_HASHES * self.hash_tokens:
            rule = f"has too small a divisor in common with prefix_len ({self.prefix_len})"
            refuse(self, [Mistake("common_len", rule, "take multiples of 16 or more for both")])
        return self

    @property
    def hash_tokens(self) -> int:
        """Tokens that one hash of a prefix stands for: as many as divide both its parts."""
        return gcd(self.prefix_len, self.common_len or 0)

    def hashes(self, number: int) -> tuple[int, ...]:
        """The hashes of prefix `number`: the first ones are those of all.

        With 512 tokens in common of 2,048 a hash is 512 tokens: prefix 0 is (0, 1, 2, 3), prefix 1 is (0, 4, 5, 6).
        """
        common = (self.common_len or 0) // self.hash_tokens
        own = self.prefix_len // self.hash_tokens - common
        return (*range(common), *range(common + number * own, common + (number + 1) * own))


class Workload(TrafficShape):
    """Which requests arrive, and when.

    Either synthetic (`num_prompts`, `prompt_len`, `output_len` and `request_rate` or `arrival`), a `mix` of several
    such ones, `sessions`, or a `trace`; `priorities` and `tenants` go with all but the mix, `max_concurrency` with all
    but `sessions`.
    """

    priorities: dict[str | int, Share] | None = Field(
        default=None, description="share of each class: high, normal, low, or integers (lower goes first)"
    )
    tenants: dict[str | int, Share] | None = Field(
        default=None, description="share of each tenant in the requests, by name; the shares sum to 1"
    )
    prefix: Prefix | None = Field(default=None, description="prefixes that prompts share")
    max_concurrency: Count | None = Field(
        default=None, description="most requests in the system at once; later ones are sent when one has ended"
    )
    mix: Annotated[list[Part], Field(min_length=1, max_length=100)] | None = Field(
        default=None, description="tenants with arrivals and lengths of their own, together"
    )
    sessions: Sessions | None = Field(default=None, description="users and agents, whose turns wait for answers")
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
        _check_sum(shares.values())
        return shares

    @field_validator("tenants")
    @classmethod
    def _check_tenants(cls, shares: dict[str | int, float] | None) -> dict[str | int, float] | None:
        for name in shares or ():
            if not isinstance(name, str):
                raise rule_error(f"the tenant {name} must be text", f'write "{name}"')
            if len(checked_name(name)) > MAX_NAME:
                raise rule_error(f"a tenant's name has {len(name)} characters", f"take at most {MAX_NAME}")
        if shares is not None:
            _check_sum(shares.values())
        return shares

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.trace or self.mix or self.sessions:
            refuse(self, self._alone_mistakes())
        else:
            refuse(self, self._synthetic_mistakes())
        return self

    def _alone_mistakes(self) -> list[Mistake]:
        """What a trace, a mix or sessions do not go with."""
        given = [key for key in _SYNTHETIC if getattr(self, key) is not None]
        if self.sessions:
            rule, mend = "sessions have their own arrivals and lengths", "move it into sessions, or drop them"
            given += [key for key in ("trace", "mix") if getattr(self, key)]
            users = Mistake("max_concurrency", "users are sessions.concurrency", "write it there")
            return [Mistake(key, rule, mend) for key in given] + [users] * (self.max_concurrency is not None)
        if self.mix:
            rule = "each part of a mix has its own"
            given += [key for key in _SHARES if getattr(self, key) is not None]
            others = [Mistake("trace", "cannot be given with a mix", "keep one of them")] if self.trace else []
            return [*(Mistake(key, rule, "move it into the parts, or drop the mix") for key in given), *others]
        mends = {"num_prompts": "use trace.limit", "request_rate": "use trace.rate_scale"}
        rule = "a trace brings its own arrivals and lengths"
        return [Mistake(key, rule, f"{mends.get(key, 'leave it out')}, or drop the trace") for key in given]

    def _synthetic_mistakes(self) -> list[Mistake]:
        if not any(getattr(self, key) is not None for key in _SYNTHETIC):
            rule = "a workload needs num_prompts, request_rate, prompt_len and output_len, or a trace, mix or sessions"
            raise rule_error(rule, "for example {num_prompts: 100, request_rate: 2, prompt_len: ..., output_len: ...}")
        return super()._synthetic_mistakes()

    def priority_shares(self) -> list[tuple[int, float]]:
        """Priority levels and their shares, lowest level first; empty when all have the same priority."""
        return sorted((priority_of(key) or 0, share) for key, share in (self.priorities or {}).items())

    def tenant_shares(self) -> list[tuple[str | None, float]]:
        """Tenants and their shares, as written; empty when nobody is named."""
        return [(str(name), share) for name, share in (self.tenants or {}).items()]


def _check_sum(shares: Iterable[float]) -> None:
    total = sum(shares)
    if abs(total - 1) > 1e-6:
        raise rule_error(f"shares must sum to 1, and sum to {total:g}", "change them")
