"""Where a simulation is off, step by step: `python -m benchmarks.stream_steps [--recorded DIR]`; docs/accuracy.md.

The stream of a `vllm bench serve` tells the server's steps (`simbatch.sim.streams`). With U(k) when step k's tokens
come, S(k) = U(k-2) (asynchronous scheduling), and where the host holds up, U(k) - U(k-1) is the launch of step k+1. The
same is said of the simulation's steps (one seed of the host's noise). Then the real launches of batches that no graph
holds (more than 512 tokens): their slope per running request, and how much successive ones correlate.

`... kernels`: imports and estimates with an assumed host beside other people's servers. Each model is imported for 8 x
H100 from aiconfigurator's package, and estimated by the roofline; every run of the server's streams is simulated with
its lengths, in a closed loop as large, with host and front end as assumed and, of the package, with the device alone.
The streams lie in ../shared/streams; they are no part of the project. The assumed constants were rounded with the two
dense servers in sight; neither tables nor roofline were fitted to any, and gpt-oss had no say in anything.
docs/accuracy.md has the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import run_one_of
from benchmarks.first_look import ENGINE, MEASURED, RECORDED, SERVED, Run, recorded_run, require, simulated_run
from benchmarks.stream_fit import SHARED, write_runs
from benchmarks.stream_fit import require as require_shared
from simbatch.profiler.fit.streams.runs import real_means, simulated_means, streams_of
from simbatch.profiler.importers import import_profile
from simbatch.profiler.importers.source import ImportRequest
from simbatch.profiler.model.estimates import roofline_profile
from simbatch.profiler.model.published import find_model
from simbatch.profiler.records.recorded import Recorded, read_recorded
from simbatch.sim.clock import PS_PER_MS
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.gpus import GPUS
from simbatch.sim.cost.profile import MeasuredProfile
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
    """The same of a simulation that kept its steps, by the client's clock."""
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


def steps() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="the folder of the recorded runs")
    folder = require(parser.parse_args().recorded)
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


DEGREE = 8
SETTINGS = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "enable_prefix_caching": False}


class Server(NamedTuple):
    """A model's published name, and the file of its streams."""

    model: str
    streams: str


SERVERS = (
    Server("meta-llama/Llama-3.1-70B", "scicom-h100-Llama-3.1-70B-tp8"),
    Server("Qwen/Qwen3-8B", "scicom-h100-Qwen3-8B-tp8"),
    Server("openai/gpt-oss-120b", "scicom-h100-gpt-oss-120b-tp8"),
)


def profiles_of(server: Server) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every way to a profile of a server's model, by its name in the table."""
    request = ImportRequest("aiconfigurator-core", None, "p.json", server.model, "h100", tensor_parallel_size=DEGREE)
    package = content_of(import_profile(request))
    yield "package, device alone", {key: value for key, value in package.items() if key not in ("host", "front_end")}
    yield "package", package
    config = find_model(server.model)[0]
    yield "roofline", content_of(roofline_profile(config, GPUS["h100"], model="m", tensor_parallel_size=DEGREE))


def content_of(profile: MeasuredProfile) -> dict[str, Any]:
    """A profile as a scenario writes it."""
    return profile.model_dump(mode="json", exclude_defaults=True)


def errors(profile: dict[str, Any], paths: list[Path]) -> Any:
    """Simulated over recorded means less 1: [run, (TTFT, TPOT, E2EL)]."""
    runs = [streams_of(read_recorded(path)) for path in paths]
    return np.array([simulated_means(profile, SETTINGS, run).errors(real_means(run)) for run in runs])


def kernels() -> None:
    """Print the table: median |error| and bias, in per cent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder of streams")
    shared = parser.parse_args().shared
    print("| server | simulated | runs | E2EL | TPOT | TTFT |\n|---|---|---|---|---|---|")
    for server in SERVERS:
        with TemporaryDirectory() as folder:
            paths = write_runs(require_shared(shared, f"streams/{server.streams}.json.gz"), Path(folder))
            for name, content in profiles_of(server):
                found = 100 * errors(content, paths)
                median, bias = np.median(np.abs(found), axis=0), np.median(found, axis=0)
                cells = [f"{median[i]:.1f} ({bias[i]:+.1f})" for i in (2, 1, 0)]
                print(f"| {server.model} | {name} | {len(found)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_one_of(steps, kernels=kernels)
