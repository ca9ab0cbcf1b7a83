"""A recommendation in words: what the table says, what simulation shows, what to paste."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.cost.uncertainty import NO_REAL_RUN, caveats
from simbatch.sim.files import write_json, write_yaml
from simbatch.sim.metrics.registry import SLO_SHARE, WITHIN_SLO, shown
from simbatch.sim.results.files import Writers, write_result
from simbatch.sim.text import number, percent, table
from simbatch.sim.tuning.recommend import (
    CLOSE,
    ENOUGH,
    NUM_SEEDS,
    TOKENS_GAIN,
    BatchChoice,
    Recommendation,
    TriedChoice,
)
from simbatch.sim.tuning.recommend_doubts import banded_lines, beaten_lines, kept_words, stands_content
from simbatch.sim.tuning.vllm_flags import CONFIG_FILE, arguments, command, config_yaml, weight_notes
from simbatch.sim.workload.sessions import Empirical

FIGURES = shown("recommend")  # of a trial, beside its score
FAR = 20  # times
NAMES = {"ttft": "time to first token", "tpot": "time per output token", "e2el": "end-to-end latency"}


def report(found: Recommendation) -> str:
    """Everything, as plain text."""
    given = arguments(found)
    sections = [
        [*_head(found)],
        ["recommended:", command(given), f"or: vllm serve --config {CONFIG_FILE}"],
        [*_evidence(found)],
        [*verdict(found)],
        [f"- {note}" for note in all_notes(found)],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def verdict(found: Recommendation) -> list[str]:
    """What was kept, what was changed and why, and how sure it is."""
    return [*choices(found), *doubts(found), *not_enough(found)]


def doubts(found: Recommendation) -> list[str]:
    """How the choice stands under draws of the profile's doubts and under fresh seeds."""
    return [*beaten_lines(found), *_confirmed(found), *banded_lines(found)]


def choices(found: Recommendation) -> list[str]:
    """What was kept, what was changed and why."""
    trials, chosen = found.trials, found.chosen
    lines = []
    prior, mine = trials[found.prior], trials[chosen]
    at_same = trials.get(BatchChoice(chosen.max_num_seqs, found.prior.max_num_batched_tokens), mine)
    if found.is_prior_kept:
        lines.append(
            f"max_num_seqs: the table's {chosen.max_num_seqs} stands; {kept_words(found, 'max_num_seqs', CLOSE)}."
        )
    else:
        change = f"max_num_seqs: {prior.choice.max_num_seqs} in the table, {chosen.max_num_seqs} here: "
        lines.append(f"{change}{_reason(found, prior, at_same)}")
        case = found.case
        if not case.low <= chosen.max_num_seqs <= case.high:
            lines.append(f"  This is outside the table's range of {case.low} to {case.high}.")
        if chosen.max_num_seqs == found.default.max_num_seqs:
            lines.append(f"  It is vLLM's default; {kept_words(found, 'max_num_seqs', CLOSE)}.")
    default = found.prior.max_num_batched_tokens
    if chosen.max_num_batched_tokens == default:
        words = f"vLLM's default of {default:,} stands; {kept_words(found, 'max_num_batched_tokens', TOKENS_GAIN)}."
    else:
        gain = _gain(found, at_same.score, mine.score)
        words = f"{default:,} is vLLM's default, {chosen.max_num_batched_tokens:,} here: {gain}."
    return [*lines, f"max_num_batched_tokens: {words}"]


def all_notes(found: Recommendation) -> list[str]:
    """What the figures rest on."""
    profile = found.profile
    lines = weight_notes(found.scenario, profile)
    if profile.is_estimate:
        lines.append(f"The profile {profile.name} is an estimate: nobody measured this model on this GPU.")
    elif profile.error is not None:
        lines.append(error_note(profile))
    lines += caveats(profile)
    inside = found.trials[found.chosen].mean("simbatch.profile.share_of_steps_in_range")
    if inside is not None and inside < 0.99:
        lines.append(f"Only {percent(inside)} of the steps are inside what the profile measured.")
    assumed = "Arrivals are" if isinstance(found.scenario.workload.prompt_len, Empirical) else "The traffic is"
    lines.append(f"{assumed} an assumption: put yours into scenario.yaml and run `simbatch tune` on it.")
    return lines


def error_note(profile: MeasuredProfile) -> str:
    """How far step times are off, from what, and what real runs say."""
    error = profile.error
    assert error is not None
    named = ((error.decode, "decode"), (error.mixed, "mixed"))
    shares = " and ".join(f"{percent(part.mape)} ({name})" for part, name in named if part.num_steps)
    if error.against == "steps":
        return f"The profile's step times are off by {shares} on average."
    end = profile.real_runs.summary() if profile.real_runs else NO_REAL_RUN
    return f"The profile's fit is off by {shares} on average from steps composed of tables; {end}."


def _head(found: Recommendation) -> Iterator[str]:
    case, load = found.case, found.load
    slo = ", ".join(f"{k.removesuffix('_ms').upper()} <= {v:g} ms" for k, v in found.slo.items())
    yield f"{case.name} on {found.profile.name}"
    yield f"traffic: {case.words}"
    yield f"rule of thumb (the table): {case.thumb(found.profile.memory.total_bytes)}"
    if load.rate is None or load.share is None or load.peak is None:
        yield f"load: {found.case.num_prompts:,} requests at once, {NUM_SEEDS} seeds" + (f"; {slo}" if slo else "")
        return
    yield (
        f"load: {load.rate:g} req/s ({load.share:.0%} of the {load.saturated:.3g} that the saturated GPU does) and "
        f"{load.peak:g} req/s (a quarter more); {NUM_SEEDS} seeds each"
    )
    yield f"SLO: {slo or 'none'}"


def shown_trials(found: Recommendation) -> list[TriedChoice]:
    """The evidence worth a row: table, range, vLLM's default, best, the choice and its neighbours."""
    batches = sorted({c.max_num_seqs for c in found.trials if c.max_num_batched_tokens == found.default[1]})
    number = found.chosen.max_num_seqs
    below = [n for n in batches if n < number][-2:]
    above = [n for n in batches if n > number][:1]
    ends = [found.case.low, found.case.high, found.prior.max_num_seqs]
    choices = {BatchChoice(n, found.default.max_num_batched_tokens) for n in (*below, number, *above, *ends)}
    choices |= {c for c in found.trials if c.max_num_seqs == number}
    choices |= {found.prior, found.default, found.chosen, found.best.choice, *(each.searched for each in found.stands)}
    return [found.trials[choice] for choice in sorted(choices) if choice in found.trials]


def _evidence(found: Recommendation) -> list[str]:
    both = "" if found.load.rate is None else ", mean of both loads; the other figures are at the lower load"
    header, rows = evidence(found)
    return [f"evidence (score: {found.unit}{both}):", *table(header, rows, num_names=2)]


def evidence(found: Recommendation) -> tuple[list[str], list[list[str]]]:
    """The table of what was tried: its header and its rows."""
    header = ["max_num_seqs", "tokens a step", "score", *(metric.heading for metric in FIGURES), ""]
    rows = []
    for trial in shown_trials(found):
        mark = "*" if trial.choice == found.chosen else " "
        figures = [
            _score(trial.score),
            *(metric.text(trial.mean(metric.key)) for metric in FIGURES),
            _marks(found, trial),
        ]
        rows.append([f"{mark} {trial.choice.max_num_seqs}", f"{trial.choice.max_num_batched_tokens:,}", *figures])
    return header, rows


def _marks(found: Recommendation, trial: TriedChoice) -> str:
    marks = [name for name, choice in (("table", found.prior), ("vLLM", found.default)) if trial.choice == choice]
    return ", ".join([*marks, *(["overloaded"] if trial.at_load.num_overloaded else [])])


def _reason(found: Recommendation, prior: TriedChoice, mine: TriedChoice) -> str:
    """Why the table's batch is worse, from what was measured."""
    gain = _gain(found, prior.score, mine.score)
    if prior.at_load.num_overloaded:
        served = prior.mean("request_throughput")
        rate = "" if found.load.rate is None else f" of {found.load.rate:g}"
        return f"with the table's the queue keeps growing ({number(served)}{rate} req/s are served); {gain}."
    if mine.choice < prior.choice:
        fewer = [trial.mean("simbatch.num_preemptions") or 0 for trial in (prior, mine)]
        preempted = f"{fewer[0]:,.0f} preemptions become {fewer[1]:,.0f}; " if fewer[0] > fewer[1] + 1 else ""
        return f"{preempted}p99 TPOT {_from_to(prior, mine, 'p99_tpot_ms')}; {gain}."
    if not found.slo:
        return f"a step serves more requests at once; {gain}."
    return f"fewer wait for a seat, p99 TTFT {_from_to(prior, mine, 'p99_ttft_ms')}; {gain}."


def _from_to(first: TriedChoice, second: TriedChoice, key: str) -> str:
    return f"{number(first.mean(key), 0)} ms becomes {number(second.mean(key), 0)} ms"


def _gain(found: Recommendation, other: float, mine: float) -> str:
    change = f" ({mine / other - 1:+.1%})" if other and mine < 2 * other else ""
    return f"{_score(other)} {found.unit} become {_score(mine)}{change}"


def _score(value: float | None) -> str:
    """Three digits at least."""
    return number(value, 4 if value is not None and value < 1 else 2)


def _confirmed(found: Recommendation) -> Iterator[str]:
    """The choice beside the others under seeds that had no say in it."""
    names = {found.prior: "the table's", found.default: "vLLM's defaults"}
    for choice, interval in found.against.items():
        name = f"{names[choice]} ({choice.max_num_seqs} and {choice.max_num_batched_tokens:,})"
        if interval is None:
            yield f"  Under {len(found.fresh_seeds)} fresh seeds {name} may as well give nothing."
            continue
        low, high = interval.low - 1, interval.high - 1
        shown = "no difference shown" if low <= 0 <= high else "better" if low > 0 else "worse"
        factor = interval.estimate
        size = (
            f"{factor:,.1f} times"
            if 2 < factor < FAR
            else f"over {FAR:g} times as much"
            if factor >= FAR
            else f"{factor - 1:+.1%} [{low:+.1%}, {high:+.1%}]"
        )
        yield f"  Against {name}, under {len(found.fresh_seeds)} fresh seeds: score {size}, {shown}."


def not_enough(found: Recommendation) -> Iterator[str]:
    """That the SLO is not kept, where no batch keeps it."""
    if found.load.is_enough:
        return
    shares: dict[str, Any] = {name: found.best.mean(f"{SLO_SHARE}{name}") for name in _limits(found)}
    worst = min(shares, key=lambda name: shares[name])
    yield (
        f"The SLO is not kept: even at {found.load.share:.0%} of what the GPU can do, no batch has {ENOUGH:.0%} of the "
        f"requests within it. What binds is the {NAMES[worst]} ({percent(shares[worst])} of the requests keep it). "
        "This is the best that can be had; relax the limit (--slo), or take a faster profile."
    )


def _limits(found: Recommendation) -> list[str]:
    return [key.removesuffix("_ms") for key in found.slo]


OWN_FILES = ("recommend.json", CONFIG_FILE, "scenario.yaml", "report.html")


def save(found: Recommendation, folder: Path, more: Writers | None = None) -> list[Path]:
    """Write everything into `folder`, and what `more` writes (a page); returns the files."""
    comment = f"{found.case.name} on {found.profile.name}, by simbatch recommend; for vllm serve --config {CONFIG_FILE}"
    writers = {
        "recommend.json": lambda path: write_json(path, content(found)),
        CONFIG_FILE: lambda path: path.write_text(config_yaml(arguments(found), comment), encoding="utf-8") and None,
        "scenario.yaml": lambda path: write_yaml(path, scenario_content(found)),
        **(more or {}),
    }
    return write_result(folder, writers, OWN_FILES, [found.scenario.engine.simulated_version])


def content(found: Recommendation) -> dict[str, Any]:
    """The content of recommend.json."""
    given = arguments(found)
    return {
        "use_case": found.case.name,
        "profile": found.profile.name,
        "goal": found.goal,
        "slo": found.slo,
        "seeds": {"first": found.scenario.seed, "fresh": found.fresh_seeds},
        "load": {**vars(found.load), "peak": found.load.peak},
        "table": {"max_num_seqs": found.prior.max_num_seqs, "min": found.case.low, "max": found.case.high},
        "recommended": found.chosen._asdict(),
        "is_table_kept": found.is_prior_kept,
        "verdict": verdict(found),
        "evidence": [_trial(found, trial) for _, trial in sorted(found.trials.items())],
        "stands": stands_content(found),
        "bands": found.bands and found.bands.content(),
        "fresh_ratios": [
            {
                **choice._asdict(),
                "ratio": interval and {"estimate": interval.estimate, "low": interval.low, "high": interval.high},
            }
            for choice, interval in found.against.items()
        ],
        "num_runs": found.num_runs,
        "vllm": given,
        "vllm_serve": command(given),
        "notes": all_notes(found),
    }


def _trial(found: Recommendation, trial: TriedChoice) -> dict[str, Any]:
    figures: dict[str, Any] = {metric.key.removeprefix("simbatch."): trial.mean(metric.key) for metric in FIGURES}
    figures["slo_share"] = trial.mean(WITHIN_SLO) if found.slo else None
    return {**trial.choice._asdict(), "score": trial.score, **figures, "overloaded_runs": trial.at_load.num_overloaded}


def scenario_content(found: Recommendation) -> dict[str, Any]:
    """The scenario of the choice, at the load of the comparison."""
    rate = {} if found.load.rate is None else {"workload.request_rate": found.load.rate}
    return found.scenario.override({**found.chosen.settings(), **rate}).dump()
