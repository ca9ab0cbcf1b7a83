"""What a search found, in words: the recommended settings, and the evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.metrics.registry import GOODPUT, REGISTRY, Metric, shown
from simbatch.sim.scenario import ONE_RUN, has_chance, is_resampled, resolve, runs_words
from simbatch.sim.statistics import RULE
from simbatch.sim.text import number, table, wrapped
from simbatch.sim.tuning import Tuned, trade_off
from simbatch.sim.tuning.finalists import CLOSE, DECIDES, TriedSettings, setting_words
from simbatch.sim.tuning.goal import Goal
from simbatch.sim.tuning.space import POLICY, values_of
from simbatch.sim.tuning.vllm_flags import own_policy, policy_refusal, simbatch_run, vllm_serve, weight_notes

NUM_SHOWN = 8


def report(tuned: Tuned) -> str:
    """Everything, as plain text."""
    return "\n".join(wrapped([*_head(tuned), "", *_table(tuned), "", *verdict(tuned), *_advice(tuned)]))


def goal_words(goal: Goal) -> str:
    """`maximize output_throughput within p99_tpot_ms <= 50`."""
    verbs = [f"{'maximize' if up else 'minimize'} {m.key}" for m, up in zip(goal.metrics, goal.maximise, strict=True)]
    limits = " and ".join(map(str, goal.limits))
    return " and ".join(verbs) + (f" within {limits}" if limits else "")


def shown_metrics(tuned: Tuned) -> list[Metric]:
    """The figures worth a column: what decides, and the usual ones that were measured."""
    usual = shown("tune", lambda metric: any(trial.means[metric.key] is not None for trial in tuned.trials))
    return [REGISTRY[key] for key in dict.fromkeys([*tuned.goal.keys, *(metric.key for metric in usual)])]


def _head(tuned: Tuned) -> Iterator[str]:
    space, seeds = tuned.space, tuned.seeds
    axes = ", ".join(f"{axis.key} ({len(axis.values)})" for axis in space.axes)
    profile = resolve(tuned.scenario).profile
    model = f", {profile.model}" if isinstance(profile, MeasuredProfile) else ""
    yield f"{tuned.scenario.name}: {goal_words(tuned.goal)}"
    yield f"on: {profile.name}{model}"
    yield f"searched: {axes}; {len(space.points):,} combinations"
    under = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}; figures are means"
    yield f"tried: {len(tuned.trials):,}, the scenario as it stands among them, under {under}"
    if len(seeds) == 1 and not has_chance(tuned.scenario):
        yield f"one run each: {ONE_RUN}"
    elif len(seeds) > 1 and is_resampled(tuned.scenario):
        yield f"each seed draws the trace anew: {runs_words(tuned.scenario, len(seeds))}"
    if space.num_refused:
        yield f"left out: {space.num_refused:,} with which vLLM or the policy does not start"


def _table(tuned: Tuned) -> Iterator[str]:
    """A column for each key that is searched, and for each figure worth one; equal trials on one line."""
    metrics, axes, own = shown_metrics(tuned), tuned.space.axes, values_of(tuned.scenario)
    if tuned.front:
        yield f"Pareto set ({len(tuned.front)}):"
    groups = _alike(tuned.front or tuned.ranked(), metrics, tuned.best)
    listed = groups if tuned.front else groups[:NUM_SHOWN]
    if not any(tuned.baseline in group for group in listed):
        listed = [*listed, [tuned.baseline]]
    titles = ["policy" if axis.key == POLICY else axis.key.rpartition(".")[2] for axis in axes]
    header = ["", *titles, *(metric.heading or metric.label for metric in metrics), ""]
    rows = [
        [
            "*" if group[0] is tuned.recommended else "",
            *(setting_cell(group[0], axis.key, own) for axis in axes),
            *(metric.text(group[0].means[metric.key]) for metric in metrics),
            marks(tuned, group),
        ]
        for group in listed
    ]
    yield from table(header, rows, num_names=1 + len(axes))
    if any(trial.overloaded for group in listed for trial in group):
        yield "overloaded: the queue kept growing, so latencies say how long the run was"


def _alike(
    trials: Sequence[TriedSettings], metrics: Sequence[Metric], first: TriedSettings
) -> list[list[TriedSettings]]:
    """Those with the same figures together, `first` at the head of its own: places that nobody takes change nothing."""
    groups: dict[tuple[float | None, ...], list[TriedSettings]] = {}
    for trial in trials:
        group = groups.setdefault(tuple(trial.means[metric.key] for metric in metrics), [])
        group.insert(0 if trial is first else len(group), trial)
    return list(groups.values())


def setting_cell(trial: TriedSettings, key: str, own: Mapping[str, Any]) -> str:
    """What the trial has for a key that is searched; `-` where its policy has no such parameter."""
    section, _, name = key.partition(".")
    policy = trial.settings.get("policy")
    value = policy.get(name) if section == "policy" and policy is not None else trial.settings.get(key, own.get(key))
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def marks(tuned: Tuned, group: Sequence[TriedSettings]) -> str:
    """What is to be said of settings beside their figures: limit broken, overloaded, as it stands."""
    trial, others = group[0], len(group) - 1
    said = ["limit broken"] if tuned.goal.limits and not tuned.goal.is_met(trial.means) else []
    said += ["overloaded"] if trial.overloaded else []
    said += ["as it stands"] if tuned.baseline in group else []
    return ", ".join([*said, *([f"{others} more alike"] if others else [])])


def verdict(tuned: Tuned) -> Iterator[str]:
    """What binds, and why something or nothing is recommended."""
    goal = tuned.goal
    if not tuned.is_feasible:
        yield from _infeasible(tuned)
        return
    binding = " and ".join(map(str, tuned.binding()))
    if binding:
        yield f"What binds: everything that was tried and is better breaks {binding}."
    if len(goal.metrics) > 1:
        yield from _knee(tuned)
        return
    if tuned.do_arrivals_bind:
        yield from _unrecommended(tuned)
        return
    if tuned.best is tuned.baseline:
        yield "Nothing that was tried is better than the scenario as it stands."
    if (equal := len(tuned.equals)) > 1:
        within = f"within {CLOSE:.0%}" + (" or not told apart" if len(tuned.seeds) > 1 else "")
        tried = f"{equal} of the {len(tuned.trials)} that were tried are equal in {goal.keys[0]} ({within})"
        yield f"{tried}; between them {_decided(tuned)} decide, in this order."


def _decided(tuned: Tuned) -> str:
    """What decides between equals here."""
    has_slo = tuned.best.means[GOODPUT] is not None
    words = [word for word in DECIDES if has_slo or word not in DECIDES[:2]]
    if tuned.goal.keys[0] == GOODPUT:
        words[0] = "the figure itself"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _unrecommended(tuned: Tuned) -> Iterator[str]:
    """That the arrivals bind, and what to ask for instead."""
    goal = tuned.goal
    served = f"all that arrives{' within the limits' if goal.limits else ''}"
    equal = f"{len(tuned.equals)} of the {len(tuned.trials)} that were tried serve {served}"
    yield f"Nothing is recommended: {equal}, so the arrivals bind {goal.keys[0]}, and it says nothing of the settings."
    ask = "--maximize goodput, " if tuned.best.means[GOODPUT] is not None else ""
    yield f"Ask for {ask}--pareto throughput,p99_ttft_ms, or --capacity, which says how much more could arrive."
    yield f"The table has the equals first, by {_decided(tuned)}."


def _infeasible(tuned: Tuned) -> Iterator[str]:
    goal = tuned.goal
    for limit in tuned.binding():
        nearest = tuned.closest_to(limit)
        best = number(nearest.means[limit.metric.key])
        if limit.excess(nearest.means[limit.metric.key]) > 0:
            yield f"Nothing that was tried keeps {limit}: the best is {best}, with {setting_words(nearest.settings)}."
        else:
            yield f"{limit} is kept by some settings ({best} at best), but not together with the other limits."
    if not goal.limits:
        yield f"No settings that were tried have a figure for {' and '.join(goal.keys)}."
    yield "The least bad is marked by * and shown below; raise the limit, lower the rate, or search other settings."


def _knee(tuned: Tuned) -> Iterator[str]:
    if tuned.knee is None:
        if tuned.wants_knee:
            yield "No knee: the set has fewer than three different points, or none above the line between its ends."
        other = "--knee picks the knee, if there is one; " if _may_have_knee(tuned) else ""
        yield f"Nothing is recommended: a set has no best. {other}--maximize with --limit picks one."
        return
    gain, cost = trade_off(tuned.goal)
    yield f"Knee (*): {RULE} ({tuned.knee.distance:.2f} of the height above it)."
    yield f"More {gain.key} than this costs more and more {cost.key}."


def _may_have_knee(tuned: Tuned) -> bool:
    """Whether asking for it could bring one: it lies between one figure to raise and one to lower."""
    return not tuned.wants_knee and sorted(tuned.goal.maximise) == [False, True]


def _advice(tuned: Tuned) -> Iterator[str]:
    """What to paste, and how sure it is."""
    if tuned.recommended is None:
        return
    settings = tuned.best.settings
    yield from confirmed(tuned)
    others = (warning for warning in tuned.best.warnings if not warning.startswith("Overloaded"))  # has its mark
    yield from (f"WARNING (*): {warning}" for warning in others)
    yield ""
    yield f"{advice_label(tuned)}:"
    yield f"  {simbatch_run(tuned.scenario, settings)}" if settings else "  the scenario as it stands"
    yield f"  {vllm_serve(tuned.scenario, settings)}"
    if policy := own_policy(tuned.scenario, settings):
        refusal = policy_refusal(tuned.scenario, settings)
        said = f"{refusal}; these flags set the engine below it" if refusal else "runs in vLLM with simbatch installed"
        yield f"  (policy {policy} {said}: docs/vllm-policies.md)"
    profile = resolve(tuned.scenario.override(settings)).profile
    if isinstance(profile, MeasuredProfile):
        yield from (f"  ({note})" for note in weight_notes(tuned.scenario, profile))


def advice_label(tuned: Tuned) -> str:
    """What the settings below are."""
    if tuned.may_stay:
        return "If anything is to change"
    return "Recommended" if tuned.is_feasible else "Least bad"


def confirmed(tuned: Tuned) -> Iterator[str]:
    """How the recommended settings fare under fresh seeds, and over the draws of the profile's doubts."""
    yield from _confirmation(tuned)
    yield from _finalists(tuned)


def _confirmation(tuned: Tuned) -> Iterator[str]:
    found, goal = tuned.confirmation, tuned.goal
    if found is None:
        return
    which = f"{found.seeds[0]} to {found.seeds[-1]}"
    seeds = f"Under {len(found.seeds)} other seeds ({which})"
    if is_resampled(tuned.scenario):
        seeds = f"Under {runs_words(tuned.scenario, len(found.seeds))} (seeds {which})"
    if goal.limits:
        yield f"{seeds} the recommended settings keep the limits in {found.within_limits} of {len(found.seeds)} runs."
        if found.within_limits < len(found.seeds):
            yield "WARNING: so close to a limit, the seed decides: search with --replications 5, or set a lower limit."
    if found.difference is not None and tuned.best is not tuned.baseline:
        low, high = found.difference.low, found.difference.high
        sure = "" if low > 0 or high < 0 else ": no difference shown"
        change = f"{found.difference.estimate:+,.2f} [{low:+,.2f}, {high:+,.2f}]"
        yield f"{seeds} {goal.metrics[0].key} changes by {change} from {number(found.base_mean)} (95 %){sure}."


def _finalists(tuned: Tuned) -> Iterator[str]:
    """What the doubts about the profile leave of it."""
    found, goal = tuned.finalists, tuned.goal
    if found is None or not found.bands.alone:
        return
    count = len(found.bands.draws)
    draws = f"In {count} draws of what the profile is in doubt about"
    if goal.limits:
        kept = ", ".join(
            f"{limit.metric.key} {limit.metric.text(band.low)} to {limit.metric.text(band.high)}"
            for limit in goal.limits
            if (band := found.bands.of(limit.metric)) is not None
        )
        yield f"{draws} the limits are kept {found.within_limits} times ({kept})."
    if found.gain is not None:
        inside = ", inside the band: the scenario as it stands may as well stay" if tuned.may_stay else ""
        yield f"{draws} {goal.metrics[0].key} changes by {found.gain.text()}{inside}."
    if (advice := found.bands.narrow([goal.metrics[0].key, *(limit.metric.key for limit in goal.limits)])) is not None:
        yield f"What to measure to narrow this most: {advice}."
