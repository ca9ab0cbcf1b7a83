"""Where a simulation is off, step by step: `python -m benchmarks.stream_steps [--recorded DIR]`; docs/accuracy.md.

The stream of a `vllm bench serve` tells the server's steps (`simbatch.sim.streams`). With U(k) when step k's tokens
come, S(k) = U(k-2) (asynchronous scheduling), and where the host holds up, U(k) - U(k-1) is the launch of step k+1. The
same is said of the simulation's steps (one seed of the host's noise). Then the real launches of batches that no graph
holds (more than 512 tokens): their slope per running request, and how much successive ones correlate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.first_look import (
    ENGINE,
    MEASURED,
    SERVED,
    Run,
    parser_of_recorded,
    recorded_run,
    require,
    simulated_run,
)
from simbatch.profiler.fit.streams.runs import streams_of
from simbatch.profiler.records.recorded import Recorded
from simbatch.sim.clock import PS_PER_MS
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.streams import rebuild_steps

NAMES = ("p8", "p16", "p22")
LAGS = (1, 2, 3)
Floats = NDArray[np.float64]


class Steps(NamedTuple):
    """Steps in order; `new` is how many first tokens each gave, `prompts` how many tokens these prompts have."""

    update_ms: Floats
    num_requests: Floats
    new: Floats
    prompts: Floats
    waits_ms: Floats  # per request: from its send to the schedule() that takes it
    firsts_ms: Floats  # and from there to its first token


def of_stream(recorded: Recorded) -> Steps:
    """The steps that a recorded stream tells."""
    streams = streams_of(recorded)
    steps = rebuild_steps(streams)
    new = [np.flatnonzero(steps.first == k).tolist() for k in range(len(steps))]
    sizes = (steps.num_decodes + steps.num_first).tolist()
    return _steps(1000 * steps.begin_s, sizes, new, streams.num_prompt_tokens, 1000 * streams.sent_s)


def of_simulation(record: RunRecord, network_ms: float) -> Steps:
    """The steps of a simulation that kept them, by the client's clock."""
    prompts, steps = record.requests.num_prompt_tokens, record.steps or []
    update_ms = np.array([step.updated_ps for step in steps]) / PS_PER_MS + network_ms
    new = [[i for i, n, done in step.scheduled if done < prompts[i] <= done + n] for step in steps]
    sizes = [len(step.scheduled) for step in steps]
    return _steps(update_ms, sizes, new, prompts, record.requests.arrival_ps / PS_PER_MS)


def _steps(update_ms: Floats, sizes: list[int], new: list[list[int]], prompts: NDArray[Any], sent_ms: Floats) -> Steps:
    taken = [(k, i) for k in range(2, len(new)) for i in new[k]]
    return Steps(
        update_ms,
        np.array(sizes, dtype=float),
        np.array([len(ids) for ids in new], dtype=float),
        np.array([prompts[ids].sum() for ids in new], dtype=float),
        np.array([update_ms[k - 2] - sent_ms[i] for k, i in taken]),
        np.array([update_ms[k] - update_ms[k - 2] for k, _ in taken]),
    )


def gaps_ms(steps: Steps, before: str) -> Floats:
    """U(k) - U(k-1) of the steps k whose neighbours k-2, ... k+1 are as `before` says: p prefills, d none, . any."""
    has = np.where(steps.new > 0, "p", "d")
    fits = [
        k for k in range(2, len(has) - 1) if all(a in (".", b) for a, b in zip(before, has[k - 2 : k + 2], strict=True))
    ]
    return np.diff(steps.update_ms)[np.array(fits, dtype=int) - 1]


ROWS: dict[str, Callable[[Steps], Floats]] = {
    "decode between decodes": partial(gaps_ms, before="dddd"),
    "from being sent to the schedule() that takes it": lambda steps: steps.waits_ms,
    "from there to the first token": lambda steps: steps.firsts_ms,
    "decode before a step with prefills (that one's launch)": partial(gaps_ms, before=".ddp"),
    "step with prefills before decodes (its end on the device)": partial(gaps_ms, before=".dpd"),
    "decode after that": partial(gaps_ms, before=".pdd"),
}


def launches(steps: Steps) -> tuple[Floats, Floats]:
    """Launches of batches above the largest graph, ms, as the gaps before them show; and their running requests."""
    ks = np.flatnonzero(
        (steps.new[2:] > 0)
        & (steps.new[1:-1] == 0)
        & ((steps.prompts + steps.num_requests - steps.new)[2:] > ENGINE["max_cudagraph_capture_size"])
    )
    return np.diff(steps.update_ms)[ks], steps.num_requests[ks + 2]


def slope(launch_ms: Floats, running: Floats) -> tuple[float, float]:
    """Least squares in the number of running requests: ms per request, and its standard error."""
    x, y = running - running.mean(), launch_ms - launch_ms.mean()
    value = float(x @ y / (x @ x))
    return value, float(np.sqrt(((y - value * x) ** 2).sum() / (len(x) - 2) / (x @ x)))


def correlation(launch_ms: Floats, lag: int) -> float:
    """Of the logarithms of launches that are so many launches apart."""
    logs = np.log(launch_ms)
    return float(np.corrcoef(logs[:-lag], logs[lag:])[0, 1])


def _simulated(run: Run, recorded: Recorded) -> Steps:
    with TemporaryDirectory() as folder:
        record, _ = simulated_run(run, recorded, Path(folder), 0, MEASURED, steps=True)
    front_end = load_profile(MEASURED, folder=Path()).front_end
    assert front_end is not None
    return of_simulation(record, 1000 * front_end.network_s)


def main() -> None:
    """Print both tables."""
    folder = require(parser_of_recorded(__doc__).parse_args().recorded)
    runs = {run.name: recorded_run(run, folder) for run in SERVED if run.name in NAMES}
    real = {name: of_stream(recorded) for name, recorded in runs.items()}
    simulated = {run.name: _simulated(run, runs[run.name]) for run in SERVED if run.name in NAMES}
    print(f"| mean, ms | {' | '.join(f'{name} real | simulated' for name in NAMES)} |\n|{'---|' * 7}")
    for label, values in ROWS.items():
        means = [values(steps[name]).mean() for name in NAMES for steps in (real, simulated)]
        print(f"| {label} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    print(f"\n| launches above 512 tokens | number | mean, ms | per running request, ms | correlation at lags {LAGS} |")
    print(f"|{'---|' * 5}")
    for name in NAMES:
        launch_ms, running = launches(real[name])
        value, error = slope(launch_ms, running)
        lags = ", ".join(f"{correlation(launch_ms, lag):.2f}" for lag in LAGS)
        print(f"| {name} | {len(launch_ms)} | {launch_ms.mean():.1f} | {value:.3f} ± {error:.3f} | {lags} |")


if __name__ == "__main__":
    main()
