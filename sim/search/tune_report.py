"""What a search found, in words: the recommended settings, and the evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.results.console import number, table
from simbatch.sim.scenario import resolve
from simbatch.sim.search.tune import Trial, Tuned, setting_words, trade_off
from simbatch.sim.search.tune_flags import own_policy, set_flags, vllm_serve, weight_notes
from simbatch.sim.search.tune_goal import GOODPUT, Goal

NUM_SHOWN = 8
CLOSE = 0.01
USUAL = ("output_throughput", GOODPUT, "p99_ttft_ms", "p99_tpot_ms")


def report(tuned: Tuned) -> str:
    """Everything, as plain text."""
    return "\n".join([*_head(tuned), "", *_table(tuned), "", *_verdict(tuned), *_advice(tuned)])


def goal_words(goal: Goal) -> str:
    """`maximize output_throughput within p99_tpot_ms <= 50`."""
    verbs = [f"{'maximize' if up else 'minimize'} {m.key}" for m, up in zip(goal.metrics, goal.maximise, strict=True)]
    limits = " and ".join(map(str, goal.limits))
    return " and ".join(verbs) + (f" within {limits}" if limits else "")


def shown_keys(tuned: Tuned) -> list[str]:
    """The figures worth a column: what decides, and the usual ones that were measured."""
    usual = [key for key in USUAL if any(trial.means[key] is not None for trial in tuned.trials)]
    return list(dict.fromkeys([*tuned.goal.keys, *usual]))


def _head(tuned: Tuned) -> Iterator[str]:
    space, seeds = tuned.space, tuned.seeds
    axes = ", ".join(f"{axis.key} ({len(axis.values)})" for axis in space.axes)
    yield f"{tuned.scenario.name}: {goal_words(tuned.goal)}"
    yield f"searched: {axes}; {len(space.points):,} combinations"
    under = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}; figures are means"
    yield f"tried: {len(tuned.trials):,}, the scenario as it stands among them, under {under}"
    if space.num_refused:
        yield f"left out: {space.num_refused:,} with which vLLM or the policy does not start"


def _table(tuned: Tuned) -> Iterator[str]:
    keys = shown_keys(tuned)
    if tuned.front:
        yield f"Pareto set ({len(tuned.front)}):"
    groups = _alike(tuned.front or tuned.ranked(), keys, tuned.best)
    shown = groups if tuned.front else groups[:NUM_SHOWN]
    if not any(tuned.baseline in group for group in shown):
        shown = [*shown, [tuned.baseline]]
    rows = [
        [_name(tuned, group), *(number(group[0].means[key]) for key in keys), _marks(tuned, group[0])]
        for group in shown
    ]
    yield from table(["settings", *keys, ""], rows)
    if any(trial.overloaded for group in shown for trial in group):
        yield "overloaded: the queue kept growing, so latencies say how long the run was"


def _alike(trials: Sequence[Trial], keys: Sequence[str], first: Trial) -> list[list[Trial]]:
    """Those with the same figures together, `first` at the head of its own: more seats than are ever taken are one."""
    groups: dict[tuple[float | None, ...], list[Trial]] = {}
    for trial in trials:
        group = groups.setdefault(tuple(trial.means[key] for key in keys), [])
        group.insert(0 if trial is first else len(group), trial)
    return list(groups.values())


def _name(tuned: Tuned, group: Sequence[Trial]) -> str:
    words = setting_words(group[0].settings)
    more = f" (and {len(group) - 1} alike)" if len(group) > 1 else ""
    mark = "*" if group[0] is tuned.best else " "
    stands = " = as it stands" if tuned.baseline in group and group[0] is not tuned.baseline else ""
    return f"{mark} {words}{stands}{more}"


def _marks(tuned: Tuned, trial: Trial) -> str:
    marks = ["overloaded"] if trial.overloaded else []
    if tuned.goal.limits and not tuned.goal.is_met(trial.means):
        marks.insert(0, "limit broken")
    return ", ".join(marks)


def _verdict(tuned: Tuned) -> Iterator[str]:
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
    if _is_all_served(tuned):
        yield "All that arrives is served, and no settings can do more: --capacity says how much more could arrive."
    if tuned.best is tuned.baseline:
        yield "Nothing that was tried is better than the scenario as it stands."
    close = sum(_is_close(tuned, trial) for trial in tuned.trials if trial is not tuned.best)
    if close:
        others = (
            "1 other setting that was tried comes" if close == 1 else f"{close} other settings that were tried come"
        )
        yield f"{others} within {CLOSE:.0%} of the best figure."


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
        other = "; --knee picks the knee, if there is one" if _may_have_knee(tuned) else ""
        yield f"Marked by *: the end of the set with the best first figure{other}."
        return
    gain, cost = trade_off(tuned.goal)
    height = f"{tuned.knee.distance:.2f} of its height"
    yield f"Knee (*): farthest above the straight line between the ends of the set ({height}, logarithmic axes)."
    yield f"More {gain.key} than this costs more and more {cost.key}."


def _may_have_knee(tuned: Tuned) -> bool:
    """Whether asking for it could bring one: it lies between one figure to raise and one to lower."""
    return not tuned.wants_knee and sorted(tuned.goal.maximise) == [False, True]


def _is_all_served(tuned: Tuned) -> bool:
    """Whether the arrivals bound the throughput, not the system."""
    arrival = tuned.scenario.workload.arrival
    is_open = arrival is None or arrival.process not in ("all_at_once", "closed_loop")
    return is_open and not tuned.best.overloaded and "throughput" in tuned.goal.metrics[0].key


def _is_close(tuned: Tuned, trial: Trial) -> bool:
    key = tuned.goal.metrics[0].key
    best, value = tuned.best.means[key], trial.means[key]
    is_met = tuned.goal.is_met(trial.means)
    return is_met and best is not None and value is not None and abs(value - best) <= CLOSE * abs(best)


def _advice(tuned: Tuned) -> Iterator[str]:
    """What to paste, and how sure it is."""
    settings = tuned.best.settings
    yield from _confirmation(tuned)
    others = (warning for warning in tuned.best.warnings if not warning.startswith("Overloaded"))  # has its mark
    yield from (f"WARNING (*): {warning}" for warning in others)
    yield ""
    yield "Recommended:" if tuned.is_feasible else "Least bad:"
    yield f"  simbatch run FILE {set_flags(settings)}" if settings else "  the scenario as it stands"
    yield f"  {vllm_serve(tuned.scenario, settings)}"
    if policy := own_policy(tuned.scenario, settings):
        yield f"  (policy {policy} is not vLLM's own: these flags set the engine below it, and no flag sets the policy)"
    profile = resolve(tuned.scenario.override(settings)).profile
    if isinstance(profile, MeasuredProfile):
        yield from (f"  ({note})" for note in weight_notes(profile))


def _confirmation(tuned: Tuned) -> Iterator[str]:
    found, goal = tuned.confirmation, tuned.goal
    if found is None:
        return
    seeds = f"Under {len(found.seeds)} other seeds ({found.seeds[0]} to {found.seeds[-1]})"
    if goal.limits:
        yield f"{seeds} the recommended settings keep the limits in {found.within_limits} of {len(found.seeds)} runs."
        if found.within_limits < len(found.seeds):
            yield "WARNING: so close to a limit, the seed decides: search with --replications 5, or set a lower limit."
    if found.difference is not None and tuned.best is not tuned.baseline:
        low, high = found.difference.low, found.difference.high
        sure = "" if low > 0 or high < 0 else ": no difference shown"
        change = f"{found.difference.estimate:+,.2f} [{low:+,.2f}, {high:+,.2f}]"
        yield f"{seeds} {goal.metrics[0].key} changes by {change} from {number(found.base_mean)} (95 %){sure}."
