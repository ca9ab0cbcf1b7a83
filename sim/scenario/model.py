"""A scenario: everything that one simulation depends on, as CONTRACT's YAML says it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import Strict, rule_error
from simbatch.sim.scenario.document import KeyPath, parse_document
from simbatch.sim.scenario.engine import ClusterSettings, EngineSettings, PolicyChoice, by_key
from simbatch.sim.scenario.policy import SweepSection, build_policy, build_router
from simbatch.sim.scenario.presets import open_scenario
from simbatch.sim.scenario.problems import Hints, problems_of
from simbatch.sim.scenario.reading import Source, Value, plain_data
from simbatch.sim.scenario.rules import with_own_names
from simbatch.sim.workload.model import Workload

if TYPE_CHECKING:
    from simbatch.sim.plugins.policy import Policy
    from simbatch.sim.plugins.router import Router

Milliseconds = Annotated[float, Field(gt=0, le=1e9)]


@cache
def _hints_of(kind: type[Scenario]) -> Hints:
    """What a scenario may say; made once, since its schema takes some 50 ms."""
    return Hints(kind.model_json_schema())


def _profile(value: object) -> object:
    if (isinstance(value, str) and value.strip()) or (isinstance(value, dict) and value):
        return value
    mend = "see `simbatch profiles`; inline: profile: {num_gpu_blocks: 1000, step_time: {base_s: 0.01}}"
    raise rule_error("must be a shipped profile's name, a path, or step times inline", mend)


def _empty_section(value: object) -> object:
    """Take `engine:` with every line below it commented out for an empty section."""
    return {} if value is None else value


OF_A_SESSION = "session_"


class SloSection(Strict):
    """What a user must get for a request to count as good, in ms, as in `vllm bench serve --goodput`; or a session."""

    ttft_ms: Milliseconds | None = Field(default=None, description="time to first token, ms")
    tpot_ms: Milliseconds | None = Field(default=None, description="time per output token after the first, ms")
    e2el_ms: Milliseconds | None = Field(default=None, description="end-to-end latency, ms")
    session_duration_ms: Milliseconds | None = Field(
        default=None, description="from the sending of a session's first turn to the last token of its last one, ms"
    )
    session_without_thinking_ms: Milliseconds | None = Field(
        default=None, description="of that the time with a turn in flight: without think time and tools, ms"
    )

    def of_requests(self) -> dict[str, float]:
        """The limits on a request that are set, `{"ttft_ms": 1000.0}`."""
        return {key: limit for key, limit in self if limit is not None and not key.startswith(OF_A_SESSION)}

    def of_sessions(self) -> dict[str, float]:
        """The limits on a whole session that are set, `{"session_duration_ms": 60000.0}`."""
        return {key: limit for key, limit in self if limit is not None and key.startswith(OF_A_SESSION)}


class HostChoice(Strict):
    """Whose host and front end the engine runs with, in place of the profile's own."""

    model_config = ConfigDict(serialize_by_alias=True)

    profile: Annotated[str, Field(min_length=1)] = Field(alias="from", description="a profile's name, or a path")


class Scenario(Strict):
    """Everything that one simulation depends on.

    >>> scenario = Scenario.from_dict({
    ...     "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
    ...     "workload": {"num_prompts": 10, "request_rate": 5,
    ...                  "prompt_len": {"distribution": "fixed", "mean": 100},
    ...                  "output_len": {"distribution": "fixed", "mean": 20}},
    ... })
    >>> scenario.policy.name, scenario.override({"engine.max_num_seqs": 64}).engine.max_num_seqs
    ('vllm', 64)
    """

    profile: Annotated[str | dict[str, Any], BeforeValidator(_profile)] = Field(
        description="a shipped profile's name, a path, or step times inline"
    )
    model: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="the checkpoint, as `vllm serve` lines are to name it; no figure hangs on it"
    )
    host: Annotated[HostChoice, by_key("host", "from", "PROFILE", "that names a profile")] | None = Field(
        default=None, description="from: the profile whose `host` and `front_end` are taken, not those of `profile`"
    )
    engine: Annotated[EngineSettings, BeforeValidator(_empty_section)] = Field(
        default_factory=EngineSettings, description="vllm serve flags in snake_case"
    )
    policy: Annotated[PolicyChoice, by_key("policy", "name", "fixed")] = Field(
        default_factory=lambda: PolicyChoice(name="vllm"), description="the batching policy and its parameters"
    )
    cluster: ClusterSettings | None = Field(
        default=None, description="several engines behind a router; without it there is one"
    )
    workload: Workload = Field(description="which requests arrive, and when")
    slo: Annotated[SloSection, BeforeValidator(_empty_section)] = Field(
        default_factory=SloSection, description="service levels for goodput, ms"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="the same seed gives the same requests, to the byte"
    )
    sweep: SweepSection | None = Field(
        default=None,
        exclude=True,
        description="what `simbatch sweep` varies: dotted keys to lists or {from, to, steps}",
    )
    tune: dict[str, Any] | None = Field(
        default=None, exclude=True, description="what `simbatch tune` searches: dotted keys to lists of values"
    )

    _source: Source = PrivateAttr()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file, or a scenario that ships by its name; relative paths in a file start at its folder.

        Raises UserError with the line and column of everything that must be mended.
        """
        document, folder = open_scenario(path)
        return cls._from_source(Source(document.name, folder, Path(path).stem, document.data, document.places))

    @classmethod
    def from_text(cls, text: str, path: Path) -> Self:
        """Take a YAML text for the file that it will be, at `path`; UserError with what must be mended in it."""
        document = parse_document(text, name=str(path))
        return cls._from_source(Source(document.name, path.parent, path.stem, document.data, document.places))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, folder: str | Path = ".", name: str = "scenario") -> Self:
        """A scenario from plain data; relative paths start at `folder`."""
        source = Source(name, Path(folder), name, {}, {})
        return cls._from_source(source.with_data(plain_data(data, name)))

    def override(self, values: Mapping[str, Value], *, origin: str | Mapping[str, str] = "override") -> Self:
        """A changed copy: dotted keys to values (`{"engine.max_num_seqs": 64}`).

        `origin` names where the change, or each of them, comes from in the messages of the UserError that a wrong one
        raises.
        """
        return self._from_source(self._source.override(values, origin))

    def with_policy(self, name: str) -> Self:
        """A copy under another policy; the parameters are kept when it is the one that is there already."""
        if name == self.policy.name:
            return self
        return self._from_source(self._source.override({"policy": {"name": name}}, "--policy"))

    def with_router(self, name: str) -> Self:
        """A copy of a cluster behind another router; the parameters are kept when it is the one that is there."""
        if self.cluster is None:
            rule = "the scenario has one engine, and nothing to choose from"
            raise UserError(Problem("--router", rule, name, "say how many there are: --set cluster.replicas=4"))
        if name == self.cluster.router.name:
            return self
        return self._from_source(self._source.override({"cluster.router": {"name": name}}, "--router"))

    def of_one_engine(self, changes: Mapping[str, Value], origin: str) -> Self:
        """A copy without the cluster, with an engine changed; `origin` is where the changes stand."""
        return self._from_source(self._source.override({"cluster": None, **changes}, origin))

    def refuse_cluster(self, what: str) -> None:
        """UserError where the scenario has several engines, and `what` can do with one alone."""
        if self.cluster is not None:
            mend = "remove the section: one engine is compared at a time"
            raise UserError(Problem(self.locate(("cluster",)), f"{what} knows one engine, and no cluster", mend=mend))

    def with_profile(self, reference: str) -> Self:
        """A copy on another profile."""
        return self._from_source(self._source.override({"profile": reference}, "--profile"))

    def with_host(self, reference: str) -> Self:
        """A copy with another profile's host and front end."""
        return self._from_source(self._source.override({"host.from": reference}, "--host"))

    @classmethod
    def _from_source(cls, source: Source) -> Self:
        source = with_own_names(source)
        try:
            scenario = cls.model_validate(source.data)
        except ValidationError as error:
            hints = _hints_of(cls)
            problems = problems_of(error, source, hints) + inline_profile_problems(source)
            raise UserError(*source.in_order(problems)) from None
        problems = inline_profile_problems(source)
        if problems:
            raise UserError(*problems)
        scenario._source = source
        return scenario

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self._source.stem

    @property
    def named(self) -> str | None:
        """What a command line calls it, the path of its file or the name of one that ships; None of plain data."""
        return self._source.name if self._source.places else None

    @property
    def changes(self) -> dict[str, Any]:
        """What flags and `override` set over the file, by dotted key."""
        return self._source.changes

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        return self._source.folder

    def build_policy(self) -> Policy:
        """The policy as an object; UserError at a name or parameter that does not exist."""
        return build_policy(self.policy.name, self.policy.params, self._source)

    def build_router(self) -> Router:
        """The cluster's router as an object; UserError at a name or parameter that does not exist."""
        assert self.cluster is not None
        return build_router(self.cluster.router.name, self.cluster.router.params, self._source)

    def locate(self, path: KeyPath) -> str:
        """Where a key or its value stands: `scenarios/x.yaml:14:5 engine.max_num_seqs`."""
        return self._source.locate(path, False)

    def relocated(self, error: UserError) -> UserError:
        """The problems of `error`, those at a key of the scenario with its line and column."""
        return UserError(*self._source.in_order(map(self._source.relocated, error.problems)))

    def dump(self) -> dict[str, Any]:
        """One simulation, so without `sweep` and `tune`, as plain data that `from_dict` takes back; absolute paths."""
        return self._source.with_absolute_paths(self.model_dump(mode="json", exclude_none=True))


def inline_profile_problems(source: Source) -> list[Problem]:
    """What is wrong with step times written inside the scenario."""
    from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile

    profile = source.data.get("profile")
    if not isinstance(profile, dict):
        return []
    kind = MeasuredProfile if {"model", "gpu", "memory"} & profile.keys() else InlineProfile
    try:
        kind.model_validate(profile)
    except ValidationError as error:
        schema = kind.model_json_schema()
        hints = Hints({"properties": {"profile": schema}, "$defs": schema.get("$defs", {})})
        return problems_of(error, source, hints, prefix=("profile",))
    return []
