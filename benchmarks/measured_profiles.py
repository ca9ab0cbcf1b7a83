"""The measured profiles that ship, from our own H100's files: `python -m benchmarks.measured_profiles [--write]`.

`h100-llama-3.1-8b-bf16-measured`: `simbatch fit` on the streams of c1, p8, p16 and p22, with what the server said of
its memory; c16 and the replays had no say. `h100-llama-3.1-8b-awq`: the same, decodes quicker by what calls of two
synchronous engines differ by, as far as its 855 samples reach. The files lie in ../shared/gpu/h100-vllm-0.32
(--recorded) and are no part of the project; they are ours, and free to use.

`... power`: what our H100 drew, a line through three runs of a server, two others predicted. Watts are read twice a
second (gpu-state.csv.gz in ../shared/gpu/h100-vllm-0.32/serve; --recorded) and averaged over the middle of each run,
from a fifth to four fifths of it; tokens are those of the requests sent then, in and out; how long the device is busy
is simulated by the measured profile. c1, p8 and p22 are fitted on, c16 and p16 are not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks import run_one_of
from benchmarks.first_look import ENGINE, FILL_S, MEASURED, RECORDED, SERVED, Run, recorded_run, require, written_trace
from simbatch import Scenario, simulate
from simbatch.profiler.fit import fit_samples
from simbatch.profiler.fit.facts import of_engine
from simbatch.profiler.fit.streams.from_streams import StreamProfile, fit_streams
from simbatch.profiler.model.config import model_config_of
from simbatch.profiler.model.reserves import peak_of
from simbatch.profiler.records.samples import EngineFacts, read_samples
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.by_name import load_profile, profile_json, shipped_text
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.cost.provenance import RealRuns
from simbatch.sim.cost.sections import GpuPower
from simbatch.sim.cost.step_time import Knots, StepTime, TwoRegimeStepTime

FITTED_POWER = ("c1", "p8", "p22")
MIDDLE = (0.2, 0.8)
LOADED_MHZ = 1980.0  # the clock with a model loaded: below it stands before the server's start
SOURCE = "power.draw of one H100 80GB HBM3 serving Llama-3.1-8B with vLLM 0.32, runs c1, p8 and p22 of 2026-11-27; ours"


class Drawn(NamedTuple):
    """A run's middle: how busy the device was, tokens per second in and out, and watts."""

    busy_share: float
    tokens_per_s: float
    watts: float


def drawn(run: Run, folder: Path) -> Drawn:
    """Of one run of the server."""
    result = json.loads(gzip.decompress((folder / "serve" / f"{run.name}.json.gz").read_bytes()))
    end_s, duration_s = datetime.strptime(result["date"], "%Y%m%d-%H%M%S").timestamp(), result["duration"]
    times, watts = states(folder)
    begin, end = (end_s - (1 - share) * duration_s for share in MIDDLE)
    recorded = recorded_run(run, folder)
    tokens = recorded.num_prompt_tokens + recorded.num_output_tokens
    low, high = (share * recorded.sent_s.max() for share in MIDDLE)
    sent = tokens[(recorded.sent_s >= low) & (recorded.sent_s <= high)].sum() / (high - low)
    with TemporaryDirectory() as temporary:
        workload = written_trace(run, recorded, Path(temporary))
        content = {"profile": MEASURED, "engine": ENGINE, "workload": workload}
        summary = simulate(Scenario.from_dict(content)).summary
    fill_s = FILL_S if run.num_known else 0.0
    busy = min(1.0, summary["simbatch"]["device_busy_share"] * summary["duration"] / (summary["duration"] - fill_s))
    return Drawn(busy, float(sent), float(watts[(times >= begin) & (times <= end)].mean()))


def states(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times and watts of the GPU's readings."""
    lines = gzip.decompress((folder / "serve" / "gpu-state.csv.gz").read_bytes()).decode().splitlines()
    rows = [line.split(", ") for line in lines]
    times = [datetime.strptime(row[0], "%Y/%m/%d %H:%M:%S.%f").timestamp() for row in rows]
    return np.array(times), np.array([float(row[2]) for row in rows])


def idle_watts(folder: Path) -> float:
    """The median of the readings between runs, the model loaded: those below 150 W at the full clock."""
    lines = gzip.decompress((folder / "serve" / "gpu-state.csv.gz").read_bytes()).decode().splitlines()
    rows = [line.split(", ") for line in lines]
    return float(np.median([float(row[2]) for row in rows if float(row[1]) == LOADED_MHZ and float(row[2]) < 150]))


def fitted_power(folder: Path) -> GpuPower:
    """Least squares, relative to what was drawn; the error is the largest of the runs that had no say."""
    idle_w = idle_watts(folder)
    found = {run.name: drawn(run, folder) for run in SERVED}
    known = [found[name] for name in FITTED_POWER]
    columns = np.array([[each.busy_share / each.watts, each.tokens_per_s / each.watts] for each in known])
    busy_w, per_token_j = np.linalg.lstsq(columns, np.array([1 - idle_w / each.watts for each in known]), rcond=None)[0]
    line = GpuPower(
        idle_w=round(idle_w, 1),
        busy_w=round(float(busy_w), 1),
        per_token_j=round(float(per_token_j), 5),
        error=0,
        source=SOURCE,
    )
    errors = {name: line.watts(each.busy_share, each.tokens_per_s) / each.watts - 1 for name, each in found.items()}
    for name, error in errors.items():
        said = " (fitted on)" if name in FITTED_POWER else ""
        print(f"{name}: {found[name].watts:.0f} W, predicted {100 * error:+.1f} %{said}")
    largest = max(abs(error) for name, error in errors.items() if name not in FITTED_POWER)
    return line.model_copy(update={"error": round(largest, 3)})


def power() -> None:
    """Print the line and its errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="the folder of the recorded runs")
    print(fitted_power(require(parser.parse_args().recorded)).model_dump_json(indent=2))


ROOT = Path(__file__).parents[1]
BF16, AWQ = "h100-llama-3.1-8b-bf16-measured", "h100-llama-3.1-8b-awq"
NEAREST = "h100-llama-3.1-8b-bf16"
FITTED = ("c1", "p8", "p16", "p22")
MACHINE = "one NVIDIA H100 80GB HBM3 in a virtual machine of 16 virtual cores, vLLM 0.32.0, 2026-11-27; ours"
OF_MACHINE = "host and front end are this virtual machine's, which is slow; `--host` takes another machine's"
BF16_NOTES = (
    "fitted from the streams of vllm bench serve at temperature 0 (c1, p8, p16, p22: 1 to 90 requests at once, prompts "
    "of 160 to 1,440); c16 and three replays within one process had no say (docs/accuracy.md)",
    "not told by the streams, in proportion to h100-llama-3.1-8b-bf16's: attention, a decode's context beside "
    "prefills, steps of more than {tokens:,} tokens: fewer than thirty reached the next knot",
    OF_MACHINE,
    "memory: what vLLM resolved; reserve_bytes is what the parts that it names leave, not a measurement",
)
AWQ_NOTES = (
    "decodes: those of the bf16 server, less what calls of a synchronous engine in one process differ by between bf16 "
    "and AWQ (1,420 and 855 samples, on a machine that was not quiet: held-out errors of 6 and 8 %)",
    "steps with prefills: the bf16 server's as they are; calls of the two differ by less than their noise (15 %)",
    "no server was measured with AWQ; host and front end are the bf16 server's",
    OF_MACHINE,
)
FEW_STEPS = 30  # so many steps with prefills tell how long those of at least so many tokens are
LEAST_S = 1.7e-3  # what reading the weights takes
CONTEXT, MOST_SEQS = 512, 256


def bf16(folder: Path) -> MeasuredProfile:
    """From the server's streams."""
    with TemporaryDirectory() as temporary:
        paths = []
        for name in FITTED:
            paths.append(Path(temporary) / f"{name}.json")
            paths[-1].write_bytes(gzip.decompress((folder / "serve" / f"{name}.json.gz").read_bytes()))
        fitted = fit_streams(paths, nearest=NEAREST, max_num_seqs=256, max_num_batched_tokens=8192, name=BF16)
    profile = fitted.profile
    assert isinstance(profile, MeasuredProfile)
    engine = _samples(folder, "bf16-async").engine
    source = f"our H100 (streams of a server: {MACHINE})"
    assert profile.host is not None
    assert profile.front_end is not None
    sections: dict[str, Any] = {
        key: getattr(profile, key).model_copy(update={"source": source}) for key in ("host", "front_end")
    }
    assert profile.streams is not None
    told = fewest_told(fitted)
    step_time = beyond(told, profile.step_time)
    shares = [(run.fitted.ttft, run.fitted.tpot) for run in profile.streams.runs]
    sections["real_runs"] = RealRuns(
        runs=f"vllm serve 0.32: {', '.join(FITTED)}, which it was fitted on; docs/accuracy.md",
        mean_ttft=(min(ttft for ttft, _ in shares), max(ttft for ttft, _ in shares)),
        mean_tpot=(min(tpot for _, tpot in shares), max(tpot for _, tpot in shares)),
    )
    notes = tuple(note.format(tokens=told) for note in BF16_NOTES)
    said = {"source": source, "licence": "free to use", "notes": notes, "step_time": step_time}
    return _named(profile, BF16, engine, {**said, **sections, "link": None, "power": fitted_power(folder)})


def fewest_told(fitted: StreamProfile) -> int:
    """The most tokens of a step's device time that so many steps tell: the largest such knot."""
    columns = [run.columns for run in fitted.runs]
    told = np.sort(np.concatenate([(each.tokens + each.num_decodes)[each.tokens > 0] for each in columns]))
    return int(max(knot for knot in fitted.steps.mixed.knots if knot <= told[-FEW_STEPS]))


def beyond(told: int, step_time: StepTime) -> TwoRegimeStepTime:
    """A step time whose steps of more tokens are in proportion to the nearest profile's.

    Two dozen steps of some 4,000 tokens, of several prompts each, made one of 8,192 last 22 % longer than its kernels;
    now 12 %. Those of c16, to which nothing is fitted, last no longer than their kernels.
    """
    nearest = load_profile(NEAREST, folder=Path()).step_time
    assert isinstance(nearest, TwoRegimeStepTime)
    assert isinstance(step_time, TwoRegimeStepTime)
    ours, theirs = step_time.mixed.tokens, nearest.mixed.tokens
    kept = [(count, time_s) for count, time_s in zip(ours.count, ours.time_s, strict=True) if count <= told]
    share = kept[-1][1] / float(np.interp(told, theirs.count, theirs.time_s))
    kept += [(n, round(share * time_s, 7)) for n, time_s in zip(theirs.count, theirs.time_s, strict=True) if n > told]
    counts, times_s = zip(*kept, strict=True)
    return step_time.model_copy(
        update={"mixed": step_time.mixed.model_copy(update={"tokens": Knots(count=counts, time_s=times_s)})}
    )


def awq(folder: Path, of_server: MeasuredProfile) -> MeasuredProfile:
    """The bf16 server's, its decodes quicker by what calls of the two, measured alike, differ by."""
    calls = {name: fit_samples(_samples(folder, name)).profile.cost_model() for name in ("awq-sync", "bf16-sync")}
    step_time = of_server.step_time
    assert isinstance(step_time, TwoRegimeStepTime)
    seqs = step_time.decode.seqs
    quicker_s = [_decode_s(calls["bf16-sync"], n) - _decode_s(calls["awq-sync"], n) for n in seqs.count]
    times_s = [max(LEAST_S, time_s - less_s) for time_s, less_s in zip(seqs.time_s, quicker_s, strict=True)]
    knots = Knots(count=seqs.count, time_s=tuple(round(time_s, 7) for time_s in accumulate(times_s, max)))
    decode = step_time.decode.model_copy(update={"seqs": knots})
    engine = _samples(folder, "awq-sync").engine
    content = {
        "source": f"our H100 (calls of vLLM's engine, and streams of a bf16 server: {MACHINE})",
        "licence": "free to use",
        **{
            "notes": AWQ_NOTES,
            "streams": None,
            "power": None,  # nobody measured it with AWQ
            "real_runs": None,
            "step_time": step_time.model_copy(update={"decode": decode}),
        },
        **{"error": None, "range": of_server.measured},
    }
    return _named(of_server, AWQ, engine, content)


def _decode_s(calls: CostModel, num_decodes: int) -> float:
    """A call of so many decodes, in the middle of what was measured."""
    n = min(num_decodes, MOST_SEQS)
    return (calls.decode_ps(n) + calls.decode_context_ps * CONTEXT * n) / PS_PER_S


def _samples(folder: Path, name: str) -> Any:
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{name}.samples.jsonl"
        path.write_bytes(gzip.decompress((folder / "profile" / f"{name}.samples.jsonl.gz").read_bytes()))
        return read_samples(path)


def _named(profile: MeasuredProfile, name: str, engine: EngineFacts, content: dict[str, Any]) -> MeasuredProfile:
    """With what the server said of itself."""
    facts = of_engine(engine, "python -m benchmarks.measured_profiles")
    config = model_config_of(engine.architecture, engine.model)
    peak = peak_of(config, 1, engine.max_num_seqs, engine.max_num_batched_tokens)
    memory = {**facts["memory"], "peak": peak}
    own = {"model": "meta-llama/Llama-3.1-8B", "max_model_len": config.max_position_embeddings}
    kept = profile.model_dump(exclude={"link"})
    return MeasuredProfile.model_validate({**kept, **facts, **own, "memory": memory, "name": name, **content})


def profiles() -> None:
    """Compare with what ships; exit code 1 when one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="the folder of the recorded runs")
    parser.add_argument("--write", action="store_true", help="replace the files that differ")
    options = parser.parse_args()
    folder = require(options.recorded)
    of_server = bf16(folder)
    different = []
    for profile in (of_server, awq(folder, of_server)):
        path, text = ROOT / "profiles" / f"{profile.name}.json", profile_json(profile)
        if not path.exists() or shipped_text(profile.name) != text:
            different.append(profile.name)
            print(f"{profile.name}: differs")
            if options.write:
                path.write_text(text, encoding="utf-8")
    sys.exit(bool(different))


if __name__ == "__main__":
    run_one_of(profiles, power=power)
