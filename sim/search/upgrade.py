"""What another vLLM changes for one scenario: in decisions, in figures, and which rule or default it comes from.

Each change that lies between the two versions (sim/scheduler/config.py) is switched alone, on top of the old version;
what it does then, as a share of the whole, is its own. Shares need not add up: a change can matter only beside another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from simbatch.sim.clock import to_s
from simbatch.sim.engine.listener import Listener
from simbatch.sim.engine.resources import Step
from simbatch.sim.metrics.registry import PREEMPTIONS, THROUGHPUT, shown
from simbatch.sim.report.result import Result
from simbatch.sim.results.runs import same_as
from simbatch.sim.scenario import resolve
from simbatch.sim.scenario.model import Scenario
from simbatch.sim.scenario.resolved import Resolved
from simbatch.sim.scheduler.config import CHANGES, Change, changes_in, short
from simbatch.sim.search import listen
from simbatch.sim.text import number, table

Summary = Mapping[str, Any]
METRICS = shown("upgrade")
SHARED = {PREEMPTIONS, THROUGHPUT, "mean_ttft_ms", "mean_tpot_ms"}  # whose shares are told
LEAST_TOLD = 0.02
LEAST_SHARE = 0.001  # of a figure: a change below it has no shares


@dataclass(frozen=True)
class Upgrade:
    """From one version to another: the figures of both, of each change alone, and the first step that differs."""

    name: str  # of policy and profile, where there are several
    old: str
    new: str
    before: Summary
    after: Summary
    alone: Mapping[str, Summary]  # changes that do something, by name
    idle: tuple[str, ...]  # changes that do nothing here
    first: FirstStep | None

    @property
    def changes_nothing(self) -> bool:
        """Whether every request fares alike."""
        return _are_alike(self.before, self.after)

    def shares(self, name: str) -> dict[str, float]:
        """Of the change in each figure, how much this one does alone."""
        found = {}
        for metric in METRICS:
            old, new, alone = (metric.of(s) for s in (self.before, self.after, self.alone[name]))
            if None in (old, new, alone) or abs(new - old) <= LEAST_SHARE * abs(old or 0):  # type: ignore[operator]
                continue
            found[metric.key] = (alone - old) / (new - old)  # type: ignore[operator]
        return found

    def as_dict(self) -> dict[str, Any]:
        """The content of compare.json's `upgrades`."""
        first = self.first
        return {
            "name": self.name,
            "from": self.old,
            "to": self.new,
            "changes_nothing": self.changes_nothing,
            "first_step": None if first is None else {
                "step": first.number, "times_s": list(first.times_s), "request_id": first.request_id,
                "what": list(first.what),
            },
            "before": _figures(self.before),
            "after": _figures(self.after),
            "changes": [
                {"name": name, **_described(name), "figures": _figures(summary), "share": self.shares(name)}
                for name, summary in self.alone.items()
            ],
            "without_effect": list(self.idle),
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """For the console."""
        yield f"From vLLM {self.old} to {self.new}{f', {self.name}' if self.name else ''}"
        if self.changes_nothing:
            yield "Nothing changes for this traffic: every request fares alike."
            yield f"Without effect here: {', '.join(self.idle) or 'there is no change between the two'}."
            return
        yield from self._decision_lines()
        rows = [(self.old, self.before), *self.alone.items(), (self.new, self.after)]
        cells = [(name, *(number(m.of(summary), m.decimals) for m in METRICS)) for name, summary in rows]
        yield from ("", *table(("alone on top of the old", *(metric.heading for metric in METRICS)), cells), "")
        for name in self.alone:
            change = CHANGES[name]
            yield f"{name} ({change.kind}, {short(change.since)}): {change.text}. {self._share_text(name)}"
        if self.idle:
            yield f"Without effect here: {', '.join(self.idle)}."

    def _decision_lines(self) -> Iterator[str]:
        if self.first is None:
            yield "Decisions: the same in every step; only times differ."
            return
        first = self.first
        since = f"the same for {first.number:,} steps. Then" if first.number else "others from the first step on:"
        yield f"Decisions: {since} request {first.request_id} is"
        for version, time_s, what in zip((self.old, self.new), first.times_s, first.what, strict=True):
            yield f"  {version} ({time_s:,.3f} s): {what}"

    def _share_text(self, name: str) -> str:
        shares = self.shares(name)
        told = [
            f"{100 * shares[metric.key]:.0f} % in {metric.heading.removesuffix(' ms')}"
            for metric in METRICS
            if metric.key in SHARED and abs(shares.get(metric.key, 0)) >= LEAST_TOLD
        ]
        return f"Of the change it does {', '.join(told)}." if told else "Alone it moves no figure by much."


def upgrade(
    scenario: Scenario, old: Result, new: Result, run: Callable[[Resolved, str], Result], name: str = ""
) -> Upgrade:
    """From the version of one result to that of the other, both of this scenario; `run` simulates, named by a label.

    `name` says which policy and profile, where there are several.
    """
    before, after = (str(result.summary["simbatch"]["engine"]["vllm_version"]) for result in (old, new))
    of = {version: scenario.override({"engine.vllm_version": version}) for version in (before, after)}
    base, other = changes_in(before), changes_in(after)
    names = [change for change in CHANGES if change in base ^ other and _may_matter(change)]
    if _are_alike(old.summary, new.summary):
        return Upgrade(name, before, after, old.summary, new.summary, {}, tuple(names), None)
    alone, idle = dict[str, Summary](), list[str]()
    for change in names:
        switched = resolve(of[before], changes=base ^ {change})
        is_tried = not _is_as_before(change, switched, resolve(of[before]))
        summary = run(switched, f"{before} with {change}").summary if is_tried else old.summary
        if _are_alike(old.summary, summary):
            idle.append(change)
        else:
            alone[change] = summary
    first = first_difference(lambda: resolve(of[before]), lambda: resolve(of[after]))
    return Upgrade(name, before, after, old.summary, new.summary, alone, tuple(idle), first)


def _are_alike(old: Summary, new: Summary) -> bool:
    """Whether every request fares alike."""
    return bool(same_as({"old": [old], "new": [new]}))


def _may_matter(name: str) -> bool:
    """A setting that nobody can have written, since one of the versions lacks it, does nothing unless it is on."""
    change = CHANGES[name]
    return change.kind != "setting" or change.before != change.after


def _is_as_before(name: str, switched: Resolved, base: Resolved) -> bool:
    """Whether a default or a setting leaves the resolved engine as it is; rules are tried."""
    if CHANGES[name].kind == "rule":
        return False
    same = replace(switched.engine, changes=base.engine.changes) == base.engine
    return same and switched.capture_sizes == base.capture_sizes


def _described(name: str) -> dict[str, Any]:
    change: Change = CHANGES[name]
    return {"since": short(change.since), "kind": change.kind, "text": change.text}


def _figures(summary: Summary) -> dict[str, float | None]:
    return {metric.key: metric.of(summary) for metric in METRICS}


MAX_STEPS = 200_000  # further than that nobody looks
Decision = tuple[tuple[Any, ...], ...]  # entries (request, tokens, tokens computed before), then who was preempted


@dataclass(frozen=True)
class FirstStep:
    """Step number, counted from 0 over all that decided something; when it is scheduled in each run; what differs."""

    number: int
    times_s: tuple[float, float]
    request_id: str
    what: tuple[str, str]  # what becomes of this request in each


class DecisionLog(Listener):
    """Remembers what each step decides, as a number; stops where `known` has another one, or after `last`."""

    def __init__(self, known: list[int] | None = None, last: int = MAX_STEPS) -> None:
        self.digests: list[int] = []
        self.newest: tuple[Decision, int] | None = None  # what was decided last, and when
        self.differs = False
        self._known, self._last = known, last

    def planned(self, step: Step) -> None:
        """Take in what a step decides; empty steps decide nothing."""
        if not step.batch.entries and not step.batch.preempted:
            return
        entries = tuple((e.request.request_id, e.num_tokens, e.num_computed_tokens) for e in step.batch.entries)
        decision = entries, tuple(request.request_id for request in step.batch.preempted)
        self.newest = decision, step.schedule_ps
        number, digest = len(self.digests), hash(decision)
        self.digests.append(digest)
        self.differs = self._known is not None and (number >= len(self._known) or self._known[number] != digest)

    def wants_end(self) -> bool:
        """Whether enough is known: a step differs, or nobody looks further."""
        return self.differs or len(self.digests) > self._last


def first_difference(old: Callable[[], Resolved], new: Callable[[], Resolved]) -> FirstStep | None:
    """Run both, each afresh as often as it takes; None where the same is decided in every step that was looked at."""
    known = DecisionLog()
    listen(old(), known)
    other = DecisionLog(known.digests)
    listen(new(), other)
    if not other.differs:
        return None
    number = len(other.digests) - 1
    again = DecisionLog(last=number)
    listen(old(), again)
    assert again.newest is not None
    assert other.newest is not None
    (ours, our_ps), (theirs, their_ps) = again.newest, other.newest
    request_id = _first_request(ours, theirs)
    what = _fate(request_id, ours), _fate(request_id, theirs)
    return FirstStep(number, (to_s(our_ps), to_s(their_ps)), request_id, what)


def _first_request(old: Decision, new: Decision) -> str:
    """Whose share of the step is another one."""
    for ours, theirs in zip_longest(old[0], new[0]):
        if ours != theirs:
            both = {entry[0]: entry for entry in (theirs, ours) if entry is not None}
            return str(next((name for name in both if _fate(name, old) != _fate(name, new)), next(iter(both))))
    return str(next(iter(set(old[1]) ^ set(new[1])), old[1][0]))


def _fate(request_id: str, decision: Decision) -> str:
    entries, preempted = decision
    entry = next((entry for entry in entries if entry[0] == request_id), None)
    if entry is not None:
        again = "preempted and " if request_id in preempted else ""
        return f"{again}computed: {entry[1]:,} tokens after {entry[2]:,}"
    return "preempted" if request_id in preempted else "not in the step"
