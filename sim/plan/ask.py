"""What a fleet is asked for, in the words of `simbatch plan` (traffic, limits, choice), and the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.files import data_frame
from simbatch.sim.plan import make_plan, report
from simbatch.sim.plan.content import content
from simbatch.sim.plan.demand import Demand, demand_of, traffic_of_lengths, traffic_of_trace
from simbatch.sim.plan.fleet import FleetPlan, Rules
from simbatch.sim.plan.kinds import (
    ReplicaKind,
    Wanted,
    kinds_like,
    kinds_of,
    left_out,
    other_weights,
    parse_gpus,
    parse_prices,
)
from simbatch.sim.plan.search import ROUTERS
from simbatch.sim.plan.words import sentence
from simbatch.sim.report import style
from simbatch.sim.report.page.page import page_writer
from simbatch.sim.scenario import Scenario, resolve, seeds_of
from simbatch.sim.scenario.presets import preset_of
from simbatch.sim.search.bands import NUM_DRAWS
from simbatch.sim.search.cells import CellStore
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning.capacity import capacity_limits
from simbatch.sim.tuning.goal import Goal, Limit

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MIN_RATE = 1e-9  # what a rate of 0 is until it is refused by name


@dataclass(frozen=True)
class FleetQuestion:
    """The traffic of `scenario`, or a model's with preset, lengths or trace; `changes` are made to it, by origin."""

    scenario: Scenario | None
    limits: Sequence[Limit]
    wanted: Wanted
    model: str | None = None
    preset: str | None = None
    prompt_len: int | None = None
    output_len: int | None = None
    prefix_len: int | None = None
    trace: Path | None = None
    rate: float | None = None
    growth: float = 1.0
    seconds: float | None = None
    routers: Sequence[str] = ()
    spare: int = 0
    max_gpus: int = 512
    replications: int = 1
    bands: bool = True
    changes: Sequence[tuple[Mapping[str, Any], str | Mapping[str, str]]] = field(default=())

    @cached_property
    def asked(self) -> tuple[Demand, list[ReplicaKind]]:
        """The traffic, and what there is to choose from."""
        if self.scenario is None:
            scenario, kinds = self._without_scenario()
        else:
            scenario = self._changed(self._of_scenario(self.scenario))
            kinds = kinds_like(scenario.profile, resolve(scenario).lead.profile, self.wanted)
        return demand_of(scenario, self.rate, self.growth, self.seconds), kinds

    @cached_property
    def kept(self) -> tuple[Limit, ...]:
        """The limits, or that 99 % of the requests keep the scenario's SLO; UserError without either."""
        scenario = self.asked[0].scenario
        if not (self.limits or scenario.slo.model_dump(exclude_none=True)):
            mend = "for example --limit p99_ttft_ms=1000 --limit p99_tpot_ms=50"
            raise UserError(Problem("--limit", "a fleet is planned for limits, and there are none", NOTHING, mend))
        Goal((), tuple(self.limits)).check_slo(scenario.slo)
        return capacity_limits(scenario, self.limits)

    def answer(
        self,
        folder: Path | None = None,
        *,
        jobs: int = -1,
        scheduler: str | None = None,
        resume: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> FleetAnswer:
        """Simulate until it is known, on `jobs` processes or a Dask `scheduler`; a `folder` keeps every simulation."""
        demand, kinds = self.asked
        store = None if folder is None else CellStore(folder / "cells")
        runner = Runner(demand.scenario, store, jobs=jobs, scheduler=scheduler, resume=resume, progress=progress)
        found = make_plan(
            *(demand, kinds, self.kept, runner),
            routers=self.routers or ROUTERS,
            seeds=seeds_of([demand.scenario], self.replications),
            rules=Rules(self.spare, self.wanted.gpus_per_node, self.max_gpus),
            num_draws=NUM_DRAWS if self.bands else 0,
            others_of=partial(other_weights, kinds=kinds, wanted=self.wanted),
        )
        found.notes += [] if demand.peak is None else [demand.peak.text()]
        found.notes += left_out(self.wanted.gpus or [], kinds)
        return FleetAnswer(found, runner.num_runs, runner.unread)

    def _of_scenario(self, scenario: Scenario) -> Scenario:
        names = ("model", "preset", "prompt_len", "output_len", "prefix_len")
        if given := [name for name in names if getattr(self, name) is not None]:
            flag, value = f"--{given[0].replace('_', '-')}", getattr(self, given[0])
            raise UserError(Problem(flag, "FILE says it already", value, "leave out one of the two"))
        if self.trace is None:
            return scenario
        return scenario.override({"workload": traffic_of_trace(self.trace)}, origin="--trace")

    def _without_scenario(self) -> tuple[Scenario, list[ReplicaKind]]:
        """A scenario of the first kind, with the traffic that is asked for."""
        if self.model is None:
            mend = "name a scenario, or --model M with --prompt-len and --output-len, or with --trace"
            raise UserError(Problem("plan", "needs a FILE or a --model", NOTHING, mend))
        kinds = kinds_of(self.model, self.wanted)
        scenario = Scenario.from_dict({"profile": kinds[0].reference, **self._traffic(kinds)}, name="plan")
        return self._changed(scenario), kinds

    def _traffic(self, kinds: Sequence[ReplicaKind]) -> dict[str, Any]:
        """The scenario's `workload`; of a preset its `slo` too."""
        if self.trace is not None:
            return {"workload": traffic_of_trace(self.trace)}
        if self.preset is not None:
            return self._of_preset(self.preset, kinds)
        if self.prompt_len is None or self.output_len is None or self.rate is None:
            rule = "needs --rate, --prompt-len and --output-len, or a --preset, or a --trace"
            mend = "for example --rate 4 --prompt-len 800 --output-len 200"
            raise UserError(Problem("--model", rule, self.model, mend))
        lengths = (self.prompt_len, self.output_len, self.prefix_len)
        return {"workload": traffic_of_lengths(max(self.rate, MIN_RATE), *lengths)}

    def _of_preset(self, name: str, kinds: Sequence[ReplicaKind]) -> dict[str, Any]:
        if self.rate is None:
            raise UserError(Problem("--preset", "needs a rate", name, "for example --rate 4"))
        preset = preset_of(name)
        room = max(kind.profile.max_model_len for kind in kinds)
        return {"workload": preset.workload(max(self.rate, MIN_RATE), room), "slo": dict(preset.slo)}

    def _changed(self, scenario: Scenario) -> Scenario:
        for values, origin in self.changes:
            scenario = scenario.override(values, origin=origin)
        return scenario


def checked(question: FleetQuestion) -> FleetQuestion:
    """As it is; UserError before anything runs where it cannot be answered."""
    _ = question.asked, question.kept
    return question


@dataclass(frozen=True)
class FleetAnswer:
    """The cheapest fleet that was `found`, and every other shape that was looked at; `num_runs` simulations.

    `unread`: how a trace was read and what in it was not, in sentences.
    """

    found: FleetPlan
    num_runs: int
    unread: Sequence[str] = ()

    def text(self) -> str:
        """The answer in one sentence, then where it comes from."""
        return report.report(self.found)

    def as_dict(self) -> dict[str, Any]:
        """The content of plan.json."""
        return content(self.found)

    def save(self, folder: Path | str, *, html: bool = False) -> list[Path]:
        """Write plan.json, the picture, the fleet's scenario and command lines, and with `html` report.html.

        Returns their paths.
        """
        from simbatch.sim.plan.page import plan_page

        more = page_writer(partial(plan_page, self.found), html=html)
        return report.save(self.found, Path(folder), self.num_runs, more)

    def table(self) -> list[dict[str, Any]]:
        """A row per shape, the cheapest first; the metrics that are limited as columns."""
        shapes = self.as_dict()["shapes"]
        return [{**{k: v for k, v in shape.items() if k != "metrics"}, **shape["metrics"]} for shape in shapes]

    def to_pandas(self) -> pd.DataFrame:
        """`table` as a DataFrame."""
        return data_frame(self.table())

    def plot(self) -> Figure:
        """A matplotlib Figure: the cost of each shape against the latency that is limited."""
        with style.inline(*report.SIZE) as drawing:
            report.draw(drawing, self.found)
        return drawing

    def __repr__(self) -> str:
        return f"FleetAnswer({sentence(self.found)})"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text())}</pre>"


def plan(
    scenario: Scenario | None = None,
    *,
    limits: Mapping[str, float] | None = None,
    gpus: Sequence[str] | None = None,
    tp: Sequence[int] | None = None,
    weights: str | None = None,
    prices: Mapping[str, float] | None = None,
    gpus_per_node: int | None = None,
    jobs: int = -1,
    folder: Path | str | None = None,
    **traffic: Any,
) -> FleetAnswer:
    """Find the cheapest fleet that keeps `limits` (`{"p99_ttft_ms": 1000}`), or 99 % within the scenario's SLO.

    The traffic is the scenario's, or a `model`'s with `prompt_len` and `output_len` (tokens), a `preset` or a `trace`,
    at `rate` requests per second. The other keywords are fields of FleetQuestion, the flags of `simbatch plan`.
    `prices` are US dollars for one GPU an hour. Raises UserError for what the user must mend.
    """
    wanted = Wanted(
        gpus=None if gpus is None else parse_gpus(",".join(gpus)),
        sizes=tp,
        weights=weights,
        prices=parse_prices(f"{gpu}={price}" for gpu, price in (prices or {}).items()),
        gpus_per_node=gpus_per_node,
    )
    if unknown := traffic.keys() - FleetQuestion.__dataclass_fields__.keys():
        raise TypeError(f"plan() has no keyword {sorted(unknown)[0]!r}")
    if (trace := traffic.get("trace")) is not None:
        traffic["trace"] = Path(trace)
    kept = [Limit.parse(f"{name}={bound!r}") for name, bound in (limits or {}).items()]
    question = FleetQuestion(scenario, kept, wanted, **traffic)
    return question.answer(None if folder is None else Path(folder), jobs=jobs)
