"""The batch that a use case should run with: the table's, unless simulation shows that it is wrong.

1. CaseLoad. All requests at once under vLLM's defaults say what the GPU can do, S requests a second. The load is the
   highest of 0.7, 0.5, 0.35 and 0.25 of S at which some batch keeps 90 % of the requests within the SLO.
2. Candidates are compared by goodput (without an SLO: output tokens a second) under the same arrivals, five seeds, at
   this load and at a quarter more, so that what is chosen bears a busier hour too. The score is the mean of all runs.
3. max_num_seqs: powers of two up to vLLM's default and what the table names, then halfway to the neighbours of the
   best. The table's batch is kept if it comes within 1 % of the best under every seed; otherwise the smallest that does
   is taken, for a smaller one needs less memory and preempts less.
4. max_num_batched_tokens: vLLM's default unless another is better by 2 % and more; of those the nearest to it that
   comes within 2 % of the best; then 3 again round the choice.
5. Nothing is left for a gain inside the band (19 draws of what the profile is in doubt about, both loads): vLLM's
   default of tokens, the table's batch and vLLM's own batch, in this order, stand where one draw shows no gain.
6. Under five fresh seeds the choice is put beside the table's and vLLM's defaults, pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import log2
from statistics import fmean
from typing import Any, NamedTuple

from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.metrics.registry import GOODPUT, REGISTRY, THROUGHPUT, WITHIN_SLO, Metric, value_at
from simbatch.sim.results import Experiment
from simbatch.sim.results.runs import Runs, Summary
from simbatch.sim.scenario import Scenario, seeds_of
from simbatch.sim.search.bands import Bands
from simbatch.sim.statistics import Interval, paired_ratio
from simbatch.sim.tuning.finalists import DrawnGain, Stand, bands_of, draws_of
from simbatch.sim.tuning.recommend_cases import UseCase

Evaluate = Callable[[Sequence[tuple[dict[str, Any], int]]], list[Summary]]  # settings and seed each

LOADS, PEAK = (0.7, 0.5, 0.35, 0.25), 1.25
ENOUGH = 0.9  # of the requests within the SLO
CLOSE, TOKENS_GAIN = 0.01, 0.02
NUM_SEEDS, NUM_FRESH = 5, 5
SATURATED_FACTOR = 2  # so many times the requests, that filling and draining the batch count less
UNITS = {GOODPUT: "req/s within the SLO", THROUGHPUT: "output tokens/s"}
TOKENS = (512, 1024, 2048, 4096, 8192, 16384)


class BatchChoice(NamedTuple):
    """What is searched."""

    max_num_seqs: int
    max_num_batched_tokens: int

    def settings(self) -> dict[str, int]:
        """As keys of a scenario."""
        return {f"engine.{name}": value for name, value in self._asdict().items()}


@dataclass(frozen=True)
class TriedChoice:
    """A choice and its runs: `at_load` and `at_peak` by seed (without a rate both are the same)."""

    choice: BatchChoice
    at_load: Runs
    at_peak: Runs
    goal: str

    @property
    def score(self) -> float:
        """The mean of the goal over all runs."""
        return fmean(self.scores())

    def scores(self) -> list[float]:
        """One a seed."""
        goal = REGISTRY[self.goal]
        pairs = zip(self.at_load.values(goal), self.at_peak.values(goal), strict=True)
        return [fmean(value or 0.0 for value in pair) for pair in pairs]

    def mean(self, key: str) -> float | None:
        """The mean at the load of a figure in summary.json, dots between the levels."""
        return self.at_load.mean(REGISTRY.get(key) or Metric(key, key))


@dataclass(frozen=True)
class CaseLoad:
    """Requests a second: of the saturated engine, and of the comparison; no rate when all come at once."""

    saturated: float
    share: float | None = None
    rate: float | None = None
    is_enough: bool = True

    @property
    def peak(self) -> float | None:
        """A quarter more."""
        return None if self.rate is None else _rounded(self.rate * PEAK)


@dataclass
class Recommendation:
    """What was chosen and why."""

    case: UseCase
    scenario: Scenario
    profile: MeasuredProfile
    goal: str
    prior: BatchChoice
    default: BatchChoice
    chosen: BatchChoice
    load: CaseLoad
    trials: dict[BatchChoice, TriedChoice]
    against: dict[BatchChoice, Interval | None] = field(default_factory=dict)  # ratio of the choice's score to theirs
    fresh_seeds: list[int] = field(default_factory=list)
    stands: list[Stand[BatchChoice]] = field(default_factory=list)
    bands: Bands | None = None  # of the choice, at the load
    num_runs: int = 0

    @property
    def unit(self) -> str:
        """What the score counts."""
        return UNITS[self.goal]

    @property
    def slo(self) -> dict[str, float]:
        """The limits that are set, ms."""
        return self.scenario.slo.of_requests()

    @property
    def best(self) -> TriedChoice:
        """The highest score of all that was tried."""
        return max(self.trials.values(), key=lambda trial: trial.score)

    @property
    def is_prior_kept(self) -> bool:
        """Whether the table's batch stands."""
        return self.chosen.max_num_seqs == self.prior.max_num_seqs


def recommend(
    case: UseCase, scenario: Scenario, profile: MeasuredProfile, evaluate: Evaluate, rate: float | None = None
) -> Recommendation:
    """Find it; `scenario` is the use case's own at any rate, or at `rate` requests a second and a quarter more."""
    search = _Search(case, scenario, profile, evaluate)
    load = search.find_load(rate)
    chosen = search.best_batch(search.default.max_num_batched_tokens, search.batches())
    chosen = search.best_batch(chosen.max_num_batched_tokens, _between(chosen.max_num_seqs, search.tried_batches()))
    tokens = search.best_tokens(chosen)
    if tokens != chosen.max_num_batched_tokens:
        near = {chosen.max_num_seqs * k // 4 for k in (2, 3, 4, 6, 8)}
        chosen = search.best_batch(tokens, near | {search.prior.max_num_seqs})
        search.best_batch(search.default.max_num_batched_tokens, [chosen.max_num_seqs])  # what the tokens alone change
    chosen, stands = search.leave_no_default(chosen)
    found = Recommendation(
        case, scenario, profile, search.goal, search.prior, search.default, chosen, load, dict(search.trials)
    )
    found.stands, found.bands = stands, search.bands(chosen)
    search.confirm(found)
    return found


class _Search:
    """One recommendation under way: the trials so far, and what to try next."""

    def __init__(self, case: UseCase, scenario: Scenario, profile: MeasuredProfile, evaluate: Evaluate) -> None:
        self.case, self.scenario, self._evaluate = case, scenario, evaluate
        self.goal = GOODPUT if scenario.slo.of_requests() else THROUGHPUT
        self.default = BatchChoice(profile.default_max_num_seqs, profile.default_max_num_batched_tokens)
        self.prior = BatchChoice(case.prior(profile.memory.total_bytes), self.default.max_num_batched_tokens)
        self.seeds = seeds_of([scenario], NUM_SEEDS)
        self.load = CaseLoad(0.0)
        self.trials: dict[BatchChoice, TriedChoice] = {}

    def batches(self) -> set[int]:
        """Powers of two up to vLLM's default, and the table's."""
        powers = {2**i for i in range(self.default.max_num_seqs.bit_length())}
        return powers | {self.case.low, self.case.high, self.prior.max_num_seqs}

    def tried_batches(self) -> list[int]:
        """In order."""
        return sorted({choice.max_num_seqs for choice in self.trials})

    def find_load(self, rate: float | None = None) -> CaseLoad:
        """The highest of the loads at which some batch keeps the SLO (1 above), or the rate that was given."""
        number = SATURATED_FACTOR * self.case.num_prompts
        at_once = {"workload.request_rate": None, "workload.burstiness": None} if self._has_rate else {}
        all_at_once = {**at_once, "workload.arrival": {"process": "all_at_once"}, "workload.num_prompts": number}
        (summary,) = self._evaluate([({**self.default.settings(), **all_at_once}, self.seeds[0])])
        saturated = float(summary["request_throughput"])
        if rate is not None or not self._has_rate:
            self.load = CaseLoad(saturated, rate and rate / saturated, rate)
            return self.load
        choices = [BatchChoice(n, self.default.max_num_batched_tokens) for n in sorted(self.batches())]
        for share in LOADS:
            tried = _rounded(saturated * share)
            runs = self._evaluate([(self._at_rate(choice, tried), self.seeds[0]) for choice in choices])
            is_enough = max(value_at(run, WITHIN_SLO) for run in runs) >= ENOUGH
            self.load = CaseLoad(saturated, share, tried, is_enough)
            if is_enough:
                break
        return self.load

    def best_batch(self, tokens: int, batches: Iterable[int]) -> BatchChoice:
        """The batch to take, among all that was tried with so many tokens a step (3 above)."""
        self._try([BatchChoice(n, tokens) for n in batches if n <= tokens])
        trials = [trial for choice, trial in self.trials.items() if choice.max_num_batched_tokens == tokens]
        close = _close_to_best(trials)
        table = self.prior.max_num_seqs
        kept = next((trial.choice for trial in close if trial.choice.max_num_seqs == table), None)
        return kept or min(trial.choice for trial in close)

    def best_tokens(self, chosen: BatchChoice) -> int:
        """The token budget to take beside this batch (4 above)."""
        default = chosen.max_num_batched_tokens
        choices = [BatchChoice(chosen.max_num_seqs, n) for n in {*TOKENS, default} if n >= chosen.max_num_seqs]
        self._try(choices)
        scores = {choice.max_num_batched_tokens: self.trials[choice].score for choice in choices}
        best = max(scores.values())
        enough = max((1 - TOKENS_GAIN) * best, (1 + TOKENS_GAIN) * scores[default])
        better = [n for n, score in scores.items() if score >= enough]
        return min(better, key=lambda n: abs(log2(n / default)), default=default)

    def leave_no_default(self, chosen: BatchChoice) -> tuple[BatchChoice, list[Stand[BatchChoice]]]:
        """What stays of a choice when no default is left for a gain inside the band (5 above), and the gains."""
        default, stands = self.default, []
        for key, value in (
            ("max_num_batched_tokens", default.max_num_batched_tokens),
            ("max_num_seqs", self.prior.max_num_seqs),
            ("max_num_seqs", default.max_num_seqs),
        ):
            other = chosen._replace(**{key: value})
            if key == "max_num_seqs" and chosen.max_num_seqs == self.prior.max_num_seqs:
                break
            if other == chosen or other.max_num_seqs > other.max_num_batched_tokens:
                continue
            stands.append(Stand(chosen, other, DrawnGain.of(self._drawn(chosen), self._drawn(other))))
            chosen = other if stands[-1].is_kept else chosen
        self._try([chosen])
        return chosen, stands

    def bands(self, choice: BatchChoice) -> Bands:
        """Of its figures at the load."""
        settings = self._at_rate(choice, self.load.rate)
        return bands_of(self.scenario, settings, self.seeds[0], self._evaluate)

    def _drawn(self, choice: BatchChoice) -> list[float]:
        """The score in each draw of what the profile is in doubt about, under the first seed."""
        loads = [self._at_rate(choice, rate) for rate in dict.fromkeys((self.load.rate, self.load.peak))]
        runs = draws_of(self.scenario, loads, self.seeds[0], self._evaluate)
        return [fmean(value_at(run, self.goal) or 0.0 for run in draw) for draw in zip(*runs, strict=True)]

    def confirm(self, found: Recommendation) -> None:
        """Put the choice beside the table's and vLLM's defaults under fresh seeds (6 above)."""
        seeds = [self.seeds[-1] + 1 + i for i in range(NUM_FRESH)]
        others = [choice for choice in (found.prior, found.default) if choice != found.chosen]
        trials = self._trials([found.chosen, *others], seeds)
        base = trials[found.chosen].scores()
        found.fresh_seeds = seeds
        found.against = {choice: paired_ratio(trials[choice].scores(), base) for choice in others}

    @property
    def _has_rate(self) -> bool:
        return self.scenario.workload.request_rate is not None

    def _try(self, choices: Iterable[BatchChoice]) -> None:
        new = sorted(set(choices) - self.trials.keys())
        self.trials |= self._trials(new, self.seeds)

    def _trials(self, choices: Sequence[BatchChoice], seeds: Sequence[int]) -> dict[BatchChoice, TriedChoice]:
        rates = [self.load.rate] if self.load.rate is None else [self.load.rate, self.load.peak]
        asked = [(self._at_rate(choice, rate), seed) for choice in choices for rate in rates for seed in seeds]
        table: Experiment[BatchChoice] = Experiment()
        cells = product(choices, rates, seeds)
        for (choice, rate, seed), summary in zip(cells, self._evaluate(asked), strict=True):
            table.add(choice, seed, summary, rate)
        return {
            each: TriedChoice(each, table.runs(each, rates[0]), table.runs(each, rates[-1]), self.goal)
            for each in choices
        }

    def _at_rate(self, choice: BatchChoice, rate: float | None) -> dict[str, Any]:
        return choice.settings() | ({} if rate is None else {"workload.request_rate": rate})


def _close_to_best(trials: Sequence[TriedChoice]) -> list[TriedChoice]:
    """Those within `CLOSE` of the best under every seed, for a batch too small shows under the busiest one."""
    best = max(trials, key=lambda trial: trial.score).scores()
    return [t for t in trials if all(mine >= (1 - CLOSE) * its for mine, its in zip(t.scores(), best, strict=True))]


def _between(number: int, tried: Sequence[int]) -> set[int]:
    """Halfway to the neighbours."""
    position = tried.index(number)
    neighbours = [*tried[max(0, position - 1) : position], *tried[position + 1 : position + 2]]
    return {(number + other) // 2 for other in neighbours}


def _rounded(rate: float) -> float:
    return float(f"{rate:.4g}")
