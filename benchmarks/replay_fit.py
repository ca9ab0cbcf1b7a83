"""Recorded updates of real steps, fitted and replayed: `python -m benchmarks.replay_fit`.

vLLM 0.32's own engine in one process on an H100, whose steps were written down with their batches and the moments of
their updates (`heavy`, `bursty`, `light` in ../shared/gpu/h100-vllm-0.32/replays, no part of the project; --recorded).
Device and launches are fitted to some of the replays by `simbatch fit`'s own code, as from streams, but with the
batches as recorded. Then

- every replay's gaps between updates are predicted along its recorded batches, beside the noise that no model can beat;
- its requests are simulated from their arrivals on, without a front end.

docs/accuracy.md has the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.first_look import (
    MEASURED,
    PROFILE,
    Run,
    parser_of_recorded,
    recorded_run,
    require,
)
from benchmarks.first_look import errors as latency_errors
from simbatch.profiler.fit.facts import of_profile
from simbatch.profiler.fit.recorder.host import errors_of, gaps_of
from simbatch.profiler.fit.recorder.moments import Moments, kinds
from simbatch.profiler.fit.streams.fit import HELD, Parts, fit_steps, spread_of
from simbatch.profiler.fit.streams.steps import Lone, StepColumns
from simbatch.profiler.fit.streams.way_in import WayIn
from simbatch.profiler.records import Steps, predict_s
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.model import CostModel

REPLAYS = ("heavy", "bursty", "light")
FITTED = ("heavy", "bursty")
LATENCIES = ("mean TTFT", "mean TPOT", "mean E2EL", "p99 TTFT")
LONG, LAUNCH_S = (2500, 3200, 4000, 5000, 8193), 30e-3
IDLE_S = 5e-3  # between an update and the next schedule(): the engine had nothing to do
NO_FRONT_END = WayIn(0.0, 0.0, 0.0, 0.0, 0.0, 0)


class Replay(NamedTuple):
    """A replay's steps: batches, when each round began and ended (its tokens were taken in), s."""

    name: str
    steps: Steps
    begin_s: Any
    end_s: Any


def read_replay(name: str, folder: Path) -> Replay:
    """From its parquet files."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "replays" / name / "steps.parquet").to_pydict()
    requests = pq.read_table(folder / "replays" / name / "requests.parquet").to_pydict()
    prompts = dict(zip(requests["request_id"], requests["num_prompt_tokens"], strict=True))
    counted = [_counts(entries, prompts) for entries in rows["scheduled"]]
    steps = Steps(*np.array(counted, dtype=np.int64).T)
    return Replay(name, steps, np.array(rows["start_s"]), np.array(rows["end_s"]))


def _counts(entries: list[dict[str, Any]], prompts: dict[str, int]) -> tuple[int, ...]:
    decodes, prefills = [], []
    for entry in entries:
        q, h = entry["num_tokens"], entry["num_computed_tokens"]
        (decodes if q == 1 and h >= prompts[entry["request_id"]] else prefills).append((q, h))
    contexts = [h for _, h in decodes] or [0]
    attention = sum(q * (2 * h + q) for q, h in prefills)
    of_prefills = (len(prefills), sum(q for q, _ in prefills), sum(q + h for q, h in prefills), attention)
    return (*of_prefills, len(decodes), sum(h for _, h in decodes), min(contexts), max(contexts))


def columns_of(replay: Replay) -> StepColumns:
    """For a fit as from streams; nobody comes to an idle engine alone here: there is no way in to tell."""
    steps, none = replay.steps, np.zeros(0)
    counts = (
        steps.num_decodes,
        steps.decode_context,
        steps.prefill_tokens,
        steps.prefill_attention,
        steps.num_prefills,
    )
    columns = [column.astype(np.float64) for column in counts]
    return StepColumns(replay.end_s, *columns, np.zeros(len(steps)), Lone(none.astype(np.int64), none, none))


def moments_of(replay: Replay) -> Moments:
    """For the replay along its batches; the thread's other moments are not known."""
    number, steps = len(replay.steps), replay.steps
    before = np.concatenate([[-np.inf], replay.end_s[:-1]])
    is_idle = replay.begin_s - before > IDLE_S
    # after an idle engine has begun a step it launches the next one beside it, if anything decodes then
    in_flight = np.where(is_idle, 0, 1)
    zeros, nan = np.zeros(number, dtype=np.int64), np.full(number, np.nan)
    schedule_s = np.maximum(replay.begin_s, before)
    return Moments(
        is_async=True,
        steps=steps,
        kind=kinds(steps, None),
        schedule_s=schedule_s,
        launched_s=nan,
        free_s=before,
        in_flight=in_flight,
        is_idle=is_idle,
        num_added=zeros,
        added_tokens=zeros,
        ready_s=nan,
        update_s=replay.end_s,
        updated_s=replay.end_s,
        start_s=nan,
        done_s=replay.end_s,
        is_done_known=np.zeros(number, dtype=bool),
    )


def fitted_parts(replays: list[Replay]) -> Parts:
    """Device and launches of these replays."""
    shape = of_profile(load_profile("h100-llama-3.1-8b-bf16", folder=Path()))
    runs = [columns_of(replay) for replay in replays]
    steps = fit_steps(runs, shape)
    parts = Parts(steps.decode, steps.mixed, NO_FRONT_END, 0.0, steps.problem.priors, spread_of(steps))
    return parts.scaled(dict.fromkeys(HELD, 1.0) | {"decode": _standstills(runs, parts)})


def _standstills(runs: list[StepColumns], parts: Parts) -> float:
    """What decodes alone took, over what is fitted.

    The knots leave standstills out, which may be the client's; `refined` makes the sum good by the requests' own times.
    Recorded updates are the engine's: its standstills are in no other part, so that the sum is made good by itself.
    """
    took_s = sum(float(run.gaps_s[run.settled].sum()) for run in runs)
    fitted = [parts.decode.step_s(run.num_decodes[run.settled], run.context[run.settled]) for run in runs]
    return took_s / sum(float(each.sum()) for each in fitted)


class LongStep(NamedTuple):
    """A step of many tokens that shows both its ends: what it took the device, s."""

    replay: Replay
    place: int
    took_s: float


def long_steps(replays: Iterable[Replay], decode_s: Callable[[Steps], Any]) -> list[LongStep]:
    """Those of so many tokens; `decode_s` says how long decodes alone take the device.

    Behind two steps of decodes alone a step begins on the device when the decodes are done; where the update comes
    later than any launch of the next step takes, it shows the end.
    """
    found = []
    for replay in replays:
        steps, gaps_s = replay.steps, columns_of(replay).gaps_s
        before_s, decodes = decode_s(steps), steps.num_prefills == 0
        shows = (steps.num_tokens >= LONG[0]) & (gaps_s > LAUNCH_S)
        places = np.flatnonzero(shows[2:] & decodes[1:-1] & decodes[:-2]) + 2
        found += [LongStep(replay, int(k), float(gaps_s[k - 1] + gaps_s[k] - before_s[k - 1])) for k in places]
    return found


def over(steps: Iterable[LongStep], cost: CostModel) -> float:
    """What they took over what a cost model says, of their sums."""
    chosen = list(steps)
    said_s = [float(predict_s(cost, each.replay.steps)[each.place]) for each in chosen]
    return sum(each.took_s for each in chosen) / sum(said_s)


def print_long_steps(replays: Iterable[Replay]) -> None:
    """Print how long steps of many tokens take the device, over the kernel tables and over the measured profile."""
    tables, measured = (load_profile(name, folder=Path()).cost_model() for name in (PROFILE, MEASURED))
    found = long_steps(replays, lambda steps: predict_s(measured, steps))
    print("| tokens | steps | over the tables | over the measured profile |\n|---|---|---|---|")
    for low, high in [*pairwise(LONG), (LONG[0], LONG[-1])]:
        chosen = [each for each in found if low <= each.replay.steps.num_tokens[each.place] < high]
        print(
            f"| {low:,} to {high - 1:,} | {len(chosen)} | {over(chosen, tables):.3f} | {over(chosen, measured):.3f} |"
        )


def main() -> None:
    """Print the tables."""
    parser = parser_of_recorded(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the launches' draws")
    options = parser.parse_args()
    folder = require(options.recorded)
    replays = {name: read_replay(name, folder) for name in REPLAYS}
    print_long_steps(replays.values())
    print("\n| fitted on | replay | gaps | mean, ms | mean error | noise | total |\n|---|---|---|---|---|---|---|")
    tables = []
    for names in (FITTED, ("light",), REPLAYS):
        parts = fitted_parts([replays[name] for name in names])
        content = {"num_gpu_blocks": 2**20, "max_model_len": 2**24, **parts.sections()}
        profile = load_profile(content, folder=Path())
        assert profile.host is not None
        for name, replay in replays.items():
            errors = errors_of([gaps_of(moments_of(replay), profile.cost_model(), profile.host)])
            print(
                f"| {', '.join(names)} | {name} | {errors.number:,} | {errors.mean_ms:.2f} | {errors.error_ms:.2f} | "
                f"{errors.noise_ms:.2f} | {errors.total:+.1%} |",
                flush=True,
            )
            run = Run(name, "", is_replay=True)
            off = latency_errors(run, recorded_run(run, folder), content, options.seeds)
            tables.append((names, name, [off[key] for key in LATENCIES]))
    print("\n| fitted on | replay | mean TTFT | mean TPOT | mean E2EL | p99 TTFT |\n|---|---|---|---|---|---|")
    for names, name, errors_ in tables:
        print(f"| {', '.join(names)} | {name} | {' | '.join(f'{error:+.1%}' for error in errors_)} |")


if __name__ == "__main__":
    main()
