"""The measured profiles that ship, from our own H100's files: `python -m benchmarks.measured_profiles [--write]`.

`h100-llama-3.1-8b-bf16-measured`: `simbatch fit` on the streams of c1, p8, p16 and p22, with what the server said of
its memory, beside long steps as those of the replays show them (`benchmarks.replay_fit`); c16 had no say, nor had the
rest of the replays. `h100-llama-3.1-8b-awq`: the same, decodes quicker by what calls of two synchronous engines differ
by, as far as its 855 samples reach. The files lie in ../shared/gpu/h100-vllm-0.32 (--recorded) and are no part of the
project; they are ours, and free to use. `benchmarks.first_look` adds what the GPU drew.
"""

from __future__ import annotations

import gzip
import sys
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.first_look import fitted_power, parser_of_recorded, require, unpacked
from benchmarks.replay_fit import LONG, REPLAYS, long_steps, over, read_replay
from simbatch.profiler.fit import fit_samples
from simbatch.profiler.fit.facts import of_engine
from simbatch.profiler.fit.streams import StreamProfile, fit_streams
from simbatch.profiler.fit.streams.fit import Parts, content_of, parts_of, refined
from simbatch.profiler.fit.streams.worth import errors_of
from simbatch.profiler.model.config import model_config_of
from simbatch.profiler.model.reserves import peak_of
from simbatch.profiler.records.samples import EngineFacts, read_samples
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.by_name import load_profile, profile_json, shipped_text
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.cost.provenance import MeanErrors, RealRuns
from simbatch.sim.cost.step_time import Knots, TwoRegimeStepTime

ROOT = Path(__file__).parents[1]
BF16, AWQ = "h100-llama-3.1-8b-bf16-measured", "h100-llama-3.1-8b-awq"
NEAREST = "h100-llama-3.1-8b-bf16"
FITTED = ("c1", "p8", "p16", "p22")
MACHINE = "one NVIDIA H100 80GB HBM3 in a virtual machine of 16 virtual cores, vLLM 0.32.0, 2026-11-27; ours"
OF_MACHINE = "host and front end are this virtual machine's, which is slow; `--host` takes another machine's"
BF16_NOTES = (
    "fitted from the streams of vllm bench serve at temperature 0 (c1, p8, p16, p22: 1 to 90 requests at once, prompts "
    "of 160 to 1,440); c16 had no say, nor had anything else of the replays (docs/accuracy.md)",
    "not told by the streams: a decode's context beside prefills, in proportion to h100-llama-3.1-8b-bf16's; steps of "
    "more than {tokens:,} tokens, of which fewer than thirty reached the next knot, and attention: {share:.3f} of the "
    "same's, as steps of {long:,} tokens and more took in three replays within one process (benchmarks/replay_fit.py)",
    "nor how much of a request's way in is work, which others wait for: as h100-llama-3.1-8b-bf16's; the rest is delay",
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


SETTINGS = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}
ENGINE = {**SETTINGS, "enable_prefix_caching": False, "async_scheduling": True}


@dataclass(frozen=True)
class WithOthers(Parts):
    """With what the streams do not tell: steps of more tokens than `told` (two dozen of several prompts tell no line).

    Nor how much of a request's way in is work, which others wait for, and how much delay: with 0.3 to 4.8 ms of it for
    a prompt of 1,024 tokens the four runs' means are met alike, and cohorts come out differently.
    """

    tables: TwoRegimeStepTime | None = None
    told: int = 0
    share: float = 1.0

    def scaled(self, factors: dict[str, float]) -> Parts:
        """With times multiplied, but for that work."""
        return super().scaled({**factors, "work": 1.0})

    def step_time(self) -> dict[str, Any]:
        """The streams' up to `told` tokens; from where the replays tell on theirs, and attention."""
        content = super().step_time()
        assert self.tables is not None
        own, theirs = content["mixed"]["tokens"], self.tables.mixed.tokens
        knots = [each for each in zip(own["count"], own["time_s"], strict=True) if each[0] <= self.told]
        long = [(n, self.share * time_s) for n, time_s in zip(theirs.count, theirs.time_s, strict=True) if n >= LONG[0]]
        counts, times_s = zip(*knots, *long, strict=True)
        rising = [round(time_s, 7) for time_s in accumulate(times_s, max)]
        content["mixed"]["tokens"] = {"count": counts, "time_s": rising}
        content["mixed"]["per_attention_unit_s"] = float(f"{self.share * self.tables.mixed.per_attention_unit_s:.4g}")
        return content


def bf16(folder: Path) -> MeasuredProfile:
    """From the server's streams, and long steps from the replays."""
    with TemporaryDirectory() as temporary:
        paths = unpacked(FITTED, folder, Path(temporary))
        fitted = fit_streams(paths, nearest=NEAREST, name=BF16, **SETTINGS)
    profile = fitted.profile
    assert isinstance(profile, MeasuredProfile)
    engine = _samples(folder, "bf16-async").engine
    source = f"our H100 (streams of a server: {MACHINE})"
    assert profile.host is not None
    assert profile.streams is not None
    parts = with_others(fitted, folder)
    fits = [MeanErrors(**errors_of(content_of(parts), ENGINE, run)._asdict()) for run in fitted.runs]
    own = parts.sections()
    sections: dict[str, Any] = {
        "step_time": own["step_time"],
        "host": {**own["host"], "growth": profile.host.growth, "source": source},
        "front_end": {**own["front_end"], "source": source},
        "streams": profile.streams.model_copy(
            update={
                "runs": tuple(
                    run.model_copy(update={"fitted": errors})
                    for run, errors in zip(profile.streams.runs, fits, strict=True)
                )
            }
        ),
        "real_runs": RealRuns(
            runs=f"vllm serve 0.32: {', '.join(FITTED)}, which it was fitted on; docs/accuracy.md",
            mean_ttft=(min(each.ttft for each in fits), max(each.ttft for each in fits)),
            mean_tpot=(min(each.tpot for each in fits), max(each.tpot for each in fits)),
        ),
    }
    sections["power"] = fitted_power(folder, content_of(parts))
    notes = tuple(note.format(tokens=parts.told, share=parts.share, long=LONG[0]) for note in BF16_NOTES)
    said = {"source": source, "licence": "free to use", "notes": notes}
    return _named(profile, BF16, engine, {**said, **sections, "link": None})


def with_others(fitted: StreamProfile, folder: Path) -> WithOthers:
    """The runs' parts, fitted beside long steps that take what the replays' took, and the nearest profile's work."""
    tables, decode = load_profile(NEAREST, folder=Path()), fitted.steps.decode
    assert isinstance(tables.step_time, TwoRegimeStepTime)
    assert tables.front_end is not None
    replays = [read_replay(name, folder) for name in REPLAYS]
    found = long_steps(replays, lambda steps: decode.step_s(steps.num_decodes, steps.decode_context))
    parts = parts_of(fitted.runs, fitted.steps)
    work = {key: getattr(tables.front_end, key) for key in ("per_request_s", "per_prompt_token_s")}
    prompt = float(np.mean(np.concatenate([run.seen.streams.num_prompt_tokens for run in fitted.runs])))
    more_s = sum(
        factor * (getattr(parts.way_in, key) - work[key]) for key, factor in zip(work, (1, prompt), strict=True)
    )
    way_in = parts.way_in._replace(**work, delay_s=parts.way_in.delay_s + more_s)
    others = {"told": most_told(fitted), "share": round(over(found, tables.cost_model()), 3)}
    begin = WithOthers(**{**vars(parts), "way_in": way_in}, tables=tables.step_time, **others)
    best = refined(begin, fitted.runs, ENGINE)
    assert isinstance(best, WithOthers)
    return best


def most_told(fitted: StreamProfile) -> int:
    """The most tokens of a step's device time that so many steps tell: the largest such knot."""
    columns = [run.columns for run in fitted.runs]
    told = np.sort(np.concatenate([(each.tokens + each.num_decodes)[each.tokens > 0] for each in columns]))
    return int(max(knot for knot in fitted.steps.mixed.knots if knot <= told[-FEW_STEPS]))


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
    parser = parser_of_recorded(__doc__)
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
    profiles()
