"""Results of one server on their way into a fit: read, rebuilt, judged, and served again by the simulated engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simbatch.profiler.fit.streams.steps import StepColumns, columns_of
from simbatch.profiler.records import Requests
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.metrics.latencies import latencies_ms
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.scenario.resolved import Resolved
from simbatch.sim.streams import RebuiltSteps, Streams, rebuild_steps, without_standstills
from simbatch.sim.streams.steps import Judgement, StepBatches, batches_of, infer_budget, judge
from simbatch.sim.workload.chunk import RequestChunk

if TYPE_CHECKING:
    from simbatch.profiler.records.recorded import Recorded

MAX_BYTES = 400 * 2**20  # some 150,000 requests of 128 tokens
HEAD_BYTES = 1 << 16
MODEL = re.compile(r'"model_id"\s*:\s*"([^"]*)"')
MEND_SMALLER = "take a run of fewer requests (--num-prompts 1000 to 20000 tells the same)"
MEND_DETAILED = "run vllm bench serve with --save-result --save-detailed"
VLLM_BUDGETS = (2048, 8192, 16384)
BLURRED = 0.8  # of a gap: chunks that take as long say nothing of what one takes
UNPLACED = 0.02  # of the prompt tokens: a budget that contradicts more is not the server's


@dataclass(frozen=True)
class Seen:
    """One result: its streams, their steps, and what was said of them."""

    name: str
    model: str | None
    streams: Streams
    steps: RebuiltSteps
    judgement: Judgement


@dataclass(frozen=True)
class StreamRun:
    """One result under the server's token budget."""

    seen: Seen
    batches: StepBatches
    columns: StepColumns


def read_results(paths: Sequence[Path]) -> list[Seen]:
    """Read and judge all files; raises UserError with the reasons of every one that cannot tell."""
    problems: list[Problem] = []
    found: list[Seen] = []
    for path in paths:
        try:
            found.append(_read(path))
        except UserError as error:
            problems += error.problems
    problems += (
        [
            Problem(str(path), reason, mend="no profile can be fitted from it")
            for path, seen in zip(paths, found, strict=False)
            for reason in seen.judgement.refusals
        ]
        if not problems
        else []
    )
    models = {seen.model for seen in found if seen.model}
    if len(models) > 1:
        problems.append(
            Problem("FILES", f"are of different models: {', '.join(sorted(models))}", mend="fit them apart")
        )
    if problems:
        raise UserError(*problems)
    return found


def _read(path: Path) -> Seen:
    from simbatch.profiler.records.recorded import read_recorded

    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be read: {error.strerror}", mend="check the path")) from None
    if size > MAX_BYTES:
        rule = f"has {size / 2**20:,.0f} MiB, and more than {MAX_BYTES >> 20} are not read at once"
        raise UserError(Problem(str(path), rule, mend=MEND_SMALLER))
    recorded = read_recorded(path)
    if not _has(path, b'"start_times"'):  # made again, which is not exact enough
        rule = "has no start_times: when requests were sent is not known, so steps cannot be rebuilt"
        raise UserError(Problem(str(path), rule, mend=MEND_DETAILED))
    if recorded.gaps_s is None:
        rule = "does not say when each token came"
        raise UserError(Problem(str(path), rule, mend=MEND_DETAILED))
    streams = streams_of(recorded)
    steps = rebuild_steps(streams)
    judgement = judge(steps, int((recorded.error != "").sum()))
    if not judgement.refusals:
        streams, stood = without_standstills(steps)
        if stood is not None:
            steps = rebuild_steps(streams)
            judgement = replace(judgement, warnings=(*judgement.warnings, stood))
    with path.open(encoding="utf-8", errors="replace") as file:
        model = MODEL.search(file.read(HEAD_BYTES))
    return Seen(path.name, model[1] if model else None, streams, steps, judgement)


def _has(path: Path, word: bytes) -> bool:
    """Whether it stands in the file."""
    kept = b""
    with path.open("rb") as file:
        while part := file.read(HEAD_BYTES):
            if word in kept + part:
                return True
            kept = part[-len(word) :]
    return False


def streams_of(recorded: Recorded) -> Streams:
    """The streams of those requests of a run that were served; it must say when each token came."""
    served = recorded.take(recorded.error == "")
    assert served.gaps_s is not None
    return Streams.of(
        served.sent_s,
        served.first_token_s - served.sent_s,
        served.gaps_s,
        served.num_prompt_tokens,
        served.num_output_tokens,
        recorded.max_concurrency,
    )


def budget_of(seen: Sequence[Seen], given: int | None, nearest: int | None) -> tuple[int, str | None]:
    """The token budget, and where it is from if the steps do not tell."""
    budget, was_full = infer_budget([each.steps for each in seen])
    if given is not None:
        total = sum(int(each.streams.num_prompt_tokens.sum()) for each in seen)
        unplaced = sum(batches_of(each.steps, given).unplaced_tokens for each in seen)
        if unplaced > UNPLACED * total:
            rule = f"{unplaced:,} of {total:,} prompt tokens do not fit into their steps under this budget"
            raise UserError(Problem("--max-num-batched-tokens", rule, given, f"the steps say {budget:,}"))
        return given, None
    if was_full:
        return budget, None
    usual = next((each for each in ((nearest,) if nearest else VLLM_BUDGETS) if each and each >= budget), budget)
    return usual, f"no step was full: at least {budget:,}"


def runs_of(seen: Sequence[Seen], budget: int) -> list[StreamRun]:
    """The runs under a budget."""
    laid = [batches_of(each.steps, budget) for each in seen]
    return [StreamRun(each, batches, columns_of(each.steps, batches)) for each, batches in zip(seen, laid, strict=True)]


def chunk_of(runs: Sequence[StreamRun]) -> float:
    """What a chunk takes, s: of the runs whose steps it does not fill."""
    told = [run.seen.judgement for run in runs if run.seen.judgement.chunk_s > 0]
    clear = [each.chunk_s for each in told if each.share_of_gap < BLURRED] or [each.chunk_s for each in told]
    return float(np.median(clear)) if clear else 0.0


METRICS = ("ttft", "tpot", "e2el")


class Means(NamedTuple):
    """Of one run, ms."""

    ttft: float
    tpot: float
    e2el: float

    def errors(self, real: Means) -> Means:
        """As shares of the real ones."""
        return Means(*(ours / theirs - 1 for ours, theirs in zip(self, real, strict=True)))


def real_means(streams: Streams) -> Means:
    """What the client recorded, by the definitions of `vllm bench serve`."""
    first, whole = streams.first_s - streams.sent_s, streams.last_s - streams.sent_s
    several = streams.num_output_tokens > 1
    tpot = (whole - first)[several] / (streams.num_output_tokens[several] - 1)
    return Means(*(1000 * float(values.mean()) if len(values) else 0.0 for values in (first, tpot, whole)))


def simulated_means(profile: dict[str, Any], settings: dict[str, Any], streams: Streams, seed: int = 0) -> Means:
    """What a simulation of the same requests says: sent as recorded, or in as large a closed loop."""
    return simulated(profile, settings, streams, seed)[0]


def simulated(profile: dict[str, Any], settings: dict[str, Any], streams: Streams, seed: int = 0) -> tuple[Means, int]:
    """Simulated means of a run, and how many steps had prefills: how far cohorts fell apart on their way in."""
    record = served(profile, settings, streams, seed)
    latencies = latencies_ms(record, np.full(len(record.requests), True))
    means = Means(*(float(np.mean(latencies[name])) if len(latencies[name]) else 0.0 for name in METRICS))
    segments = record.segments
    return means, int(segments["num_steps"][segments["prefill_tokens"] > 0].sum())


def served(
    profile: dict[str, Any], settings: dict[str, Any], streams: Streams, seed: int = 0, *, steps: bool = False
) -> RunRecord:
    """The run, in the engine."""
    from simbatch.sim import engine

    resolved = engine_of(profile, settings, seed)
    return engine.run(
        resolved.engine,
        resolved.cost_model(),
        resolved.policy,
        requests_of(streams),
        steps=steps,
        noise=resolved.noise(),
        host_noise=resolved.host_noise(),
    )


def engine_of(profile: str | dict[str, Any], settings: dict[str, Any], seed: int = 0) -> Resolved:
    """An engine of such a profile under these settings; its workload is nothing."""
    workload = {"num_prompts": 1, "request_rate": 1}
    lengths = {f"{name}_len": {"distribution": "fixed", "mean": 1} for name in ("prompt", "output")}
    content = {"profile": profile, "engine": settings, "workload": {**workload, **lengths}, "seed": seed}
    return resolve(Scenario.from_dict(content))


def requests_of(streams: Streams) -> Requests:
    """The run's requests, for the engine."""
    is_loop = streams.max_concurrency is not None
    sent_ps = np.round((streams.sent_s - streams.sent_s.min()) * (0.0 if is_loop else PS_PER_S)).astype(np.int64)
    chunk = RequestChunk(
        sent_ps.tolist(), streams.num_prompt_tokens.tolist(), np.maximum(1, streams.num_output_tokens).tolist()
    )
    return Requests(chunk, max_concurrency=streams.max_concurrency)
