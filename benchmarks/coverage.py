"""Whether 95 % intervals hold the truth 95 times in 100: `python -m benchmarks.coverage [--repetitions N] [--jobs N]`.

One seat and a constant step of 1 ms is a queue whose mean time in the system is known (Pollaczek-Khinchine): M/G/1
with geometric outputs of 100 tokens, which is M/M/1 but for 1 %, and M/D/1 with outputs of 100 tokens each. Poisson
arrivals, unscaled. Both kinds of interval are taken as users get them: the mean E2EL of the steady state in
summary.json, from one long run, and Student's t over the means of 10 shorter ones.

The runs are computed by Lindley's recursion from the same requests, much faster than by the engine and equal to it to
the picosecond (tests/test_statistics_steady.py); `--engine` takes the engine. `--warm-up` compares rules for that
instead, `--tails` ways to an interval of the P99.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from benchmarks import parser_of
from simbatch import Scenario, simulate
from simbatch.sim.clock import to_ps
from simbatch.sim.engine.record import FINISHED, SEGMENT_DTYPE, RequestColumns, RunRecord
from simbatch.sim.metrics.columns import RunFacts
from simbatch.sim.metrics.steady import steady_state
from simbatch.sim.statistics import BatchMeans, Interval, NoClaim, mean_interval
from simbatch.sim.workload import open_workload

STEP_S, TOKENS = 0.001, 100
REPLICATIONS = 10
MSER_BATCH = 5


class Case(NamedTuple):
    """A queue, its load, and the number of requests of one run; `runs` is 1 for batch means."""

    queue: str
    load: float
    num_prompts: int
    runs: int

    @property
    def truth_ms(self) -> float:
        """Mean time in the system: service, and Pollaczek and Khinchine's wait."""
        service_s = TOKENS * STEP_S
        variance = TOKENS * (TOKENS - 1) * STEP_S**2 if self.queue == "M/G/1" else 0.0
        wait_s = self.load / service_s * (variance + service_s**2) / (2 * (1 - self.load))
        return 1000 * (service_s + wait_s)

    def scenario(self) -> Scenario:
        """One seat, and everything constant but what makes the queue."""
        distribution = "geometric" if self.queue == "M/G/1" else "fixed"
        workload = {
            "num_prompts": self.num_prompts,
            "arrival": {"process": "poisson", "request_rate": self.load / (TOKENS * STEP_S)},
            "prompt_len": {"distribution": "fixed", "mean": 1},
            "output_len": {"distribution": distribution, "mean": TOKENS},
        }
        profile = {"num_gpu_blocks": 1000, "step_time": {"base_s": STEP_S}}
        return Scenario.from_dict({"profile": profile, "engine": {"max_num_seqs": 1}, "workload": workload})


LONG, SHORT = (
    (
        Case("M/G/1", 0.5, 10_000, 1),
        Case("M/G/1", 0.8, 40_000, 1),
        Case("M/G/1", 0.9, 200_000, 1),
        Case("M/D/1", 0.5, 10_000, 1),
        Case("M/D/1", 0.8, 40_000, 1),
        Case("M/G/1", 0.5, 4000, REPLICATIONS),
        Case("M/G/1", 0.8, 20_000, REPLICATIONS),
        Case("M/D/1", 0.5, 4000, REPLICATIONS),
        Case("M/D/1", 0.8, 20_000, REPLICATIONS),
    ),
    (
        Case("M/G/1", 0.8, 2000, 1),
        Case("M/G/1", 0.8, 10_000, 1),
        Case("M/G/1", 0.9, 10_000, 1),
        Case("M/G/1", 0.9, 40_000, 1),
        Case("M/G/1", 0.8, 400, REPLICATIONS),
        Case("M/G/1", 0.8, 4000, REPLICATIONS),
        Case("M/G/1", 0.9, 4000, REPLICATIONS),
        Case("M/G/1", 0.9, 20_000, REPLICATIONS),
    ),
)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first repetition: others draw other seeds")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--engine", action="store_true")
    parser.add_argument("--warm-up", action="store_true")
    parser.add_argument("--tails", action="store_true")
    options = parser.parse_args()
    if options.warm_up:
        print_warm_up(options.repetitions)
        return
    if options.tails:
        print_tails(options.repetitions)
        return
    print("| queue | load | runs x requests | intervals given | hold the truth | half width | bias of the mean |")
    print("|---|---|---|---|---|---|---|")
    for case in (*LONG, *SHORT):
        repetitions = range(options.first, options.first + options.repetitions)
        found = Parallel(n_jobs=options.jobs)(delayed(interval)(case, each, options.engine) for each in repetitions)
        print_case(case, found)


def interval(case: Case, repetition: int, engine: bool) -> tuple[float, Interval | None]:
    """The mean (ms), and the 95 % interval unless it is refused, of one repetition."""
    seeds = range(repetition * case.runs, (repetition + 1) * case.runs)
    figures = [steady(case.scenario().override({"seed": seed}), engine) for seed in seeds]
    if case.runs == 1:
        figure = figures[0]
        known = None if figure["low"] is None else Interval(figure["value"], figure["low"], figure["high"], 20)
        return (np.nan if figure["value"] is None else figure["value"]), known
    values = [figure["value"] for figure in figures]
    if None in values:
        return np.nan, None
    of_runs = mean_interval(values)
    return of_runs.estimate, of_runs


def steady(scenario: Scenario, engine: bool) -> dict[str, Any]:
    """The mean E2EL of the steady state, as summary.json has it."""
    if engine:
        result = simulate(scenario)
        block = steady_state(result.record, result.facts)
    else:
        facts = RunFacts(scenario_name="coverage", scenario=scenario.dump(), policy="vllm", profile="inline")
        block = steady_state(one_seat(scenario), facts)
    figure: dict[str, Any] = block["mean_e2el_ms"]
    return figure


def one_seat(scenario: Scenario) -> RunRecord:
    """What the engine's record says of the requests of such a scenario, without its steps.

    A request starts when it has come and the one before it has ended: it ends at the latest, over all j up to it, of
    the arrival of j and the service of all from j to it.
    """
    chunks = open_workload(scenario.workload, seed=scenario.seed, folder=scenario.folder).chunks()
    columns = [(chunk.arrival_ps, chunk.num_output_tokens) for chunk in chunks]
    arrival, outputs = (np.concatenate(part).astype(np.int64) for part in zip(*columns, strict=True))
    service = outputs * to_ps(STEP_S)
    by_then = np.cumsum(service)
    finish = by_then + np.maximum.accumulate(arrival - (by_then - service))
    zeros = np.zeros(len(arrival), dtype=np.int64)
    requests = RequestColumns(
        arrival_ps=arrival,
        scheduled_ps=finish - service,
        first_token_ps=finish - service + to_ps(STEP_S),
        finish_ps=finish,
        num_prompt_tokens=zeros + 1,
        num_output_tokens=outputs,
        num_cached_tokens=zeros,
        num_preemptions=zeros,
        priority=zeros,
        status=np.full(len(arrival), FINISHED, dtype=np.int8),
    )
    no_steps = np.empty(0, dtype=SEGMENT_DTYPE)
    return RunRecord(requests, no_steps, zeros[:0], 0, int(finish[-1]), 1000, 16, 0, 0.0)


def print_case(case: Case, found: list[tuple[float, Interval | None]]) -> None:
    given = [interval for _, interval in found if interval is not None]
    share = np.mean([interval.holds(case.truth_ms) for interval in given]) if given else np.nan
    error = (share * (1 - share) / max(len(given), 1)) ** 0.5
    width = np.mean([interval.half_width for interval in given]) / case.truth_ms if given else np.nan
    bias = np.nanmean([value for value, _ in found]) / case.truth_ms - 1
    print(
        f"| {case.queue} | {case.load} | {case.runs} x {case.num_prompts:,} | {len(given) / len(found):.1%} "
        f"| {share:.1%} ± {error:.1%} | {width:.1%} | {bias:+.2%} |",
        flush=True,
    )


def print_warm_up(repetitions: int) -> None:
    """Coverage (of the intervals given) and bias of batch means on M/M/1 by three rules for the warm-up."""
    print("| load | requests | warm-up | holds the truth | bias of the mean |\n|---|---|---|---|---|")
    for load, n in ((0.5, 20_000), (0.8, 10_000), (0.8, 40_000)):
        rules = {"none": lambda _: 0, "first 10 %": lambda series: len(series) // 10, "MSER-5": mser}
        found: dict[str, list[tuple[float, float]]] = {rule: [] for rule in rules}
        for series in mm1(load, n, repetitions):
            for rule, cut in rules.items():
                left = series[cut(series) :]
                try:
                    found[rule].append((BatchMeans(left).mean().holds(1.0), float(left.mean()) - 1))
                except NoClaim:
                    found[rule].append((np.nan, float(left.mean()) - 1))
        for rule, results in found.items():
            holds, bias = np.nanmean(results, axis=0)
            print(f"| {load} | {n:,} | {rule} | {holds:.1%} | {bias:+.2%} |", flush=True)


def print_tails(repetitions: int) -> None:
    """Coverage of the P99 on M/M/1: by sectioning, and by a bootstrap over requests as if they were independent.

    The latter in its closed form, two order statistics. The time in the system is exponential: P99 is ln 100 means.
    """
    truth = float(np.log(100))
    print("| load | requests | sectioning holds | its half width | requests one by one hold |\n|---|---|---|---|---|")
    for load, n in ((0.5, 40_000), (0.8, 100_000), (0.8, 400_000)):
        found = []
        for series in mm1(load, n, repetitions):
            series = series[n // 10 :]
            try:
                known = BatchMeans(series).quantile(0.99)
            except NoClaim:
                continue
            m, reach = len(series), 1.96 * (0.99 * 0.01 / len(series)) ** 0.5
            low, high = np.sort(series)[[int(m * (0.99 - reach)), int(m * (0.99 + reach))]]
            found.append((known.holds(truth), known.half_width / truth, low <= truth <= high))
        holds, width, naive = np.mean(found, axis=0)
        print(f"| {load} | {n:,} | {holds:.1%} | {width:.1%} | {naive:.1%} |", flush=True)


def mm1(load: float, n: int, repetitions: int) -> Iterator[NDArray[np.float64]]:
    """Times in the system of n customers, in units of their mean (Lindley's recursion)."""
    for seed in range(repetitions):
        rng = np.random.default_rng([seed, 5])
        service, gaps = rng.exponential(1.0, n), rng.exponential(1 / load, n)
        walk = np.concatenate(([0.0], np.cumsum(service[:-1] - gaps[1:])))
        yield (walk - np.minimum.accumulate(walk) + service) * (1 - load)


def mser(series: NDArray[np.float64]) -> int:
    """How many values MSER-5 leaves out, at most half (K. P. White, Simulation 69 (1997)).

    Of all truncations of the means of five, the one that makes the squared standard error of the rest's mean least, as
    if they were independent.
    """
    means = series[: len(series) // MSER_BATCH * MSER_BATCH].reshape(-1, MSER_BATCH).mean(axis=1)
    left = np.arange(len(means), 0, -1)
    total, squares = (np.cumsum(values[::-1])[::-1] for values in (means, means**2))
    error = (squares - total**2 / left) / left.astype(np.float64) ** 2
    return MSER_BATCH * int(np.argmin(error[: len(means) // 2 + 1]))


if __name__ == "__main__":
    main()
