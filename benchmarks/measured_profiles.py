"""The measured profiles that ship, from our own H100's files: `python -m benchmarks.measured_profiles [--write]`.

`h100-llama-3.1-8b-bf16-measured`: `simbatch fit` on the streams of c1, p8, p16 and p22, with what the server said of its
memory; c16 and the replays had no say. `h100-llama-3.1-8b-awq-measured`: whole calls of a synchronous engine in one
process, as far as its 855 samples reach, with the other's front end. The files lie in ../shared/gpu/h100-vllm-0.32
(--recorded) and are no part of the project; they are ours, and free to use.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.first_look import RECORDED, require
from simbatch.profiler.calibrating.from_streams import fit_streams
from simbatch.profiler.fitting.facts import of_engine
from simbatch.profiler.fitting.from_samples import fit_samples
from simbatch.profiler.fitting.samples import EngineFacts, read_samples
from simbatch.profiler.model.config import model_config_of
from simbatch.profiler.model.memory_plan import peak_of
from simbatch.profiler.write import profile_json
from simbatch.sim.cost.load import shipped_text
from simbatch.sim.cost.profile import MeasuredProfile

ROOT = Path(__file__).parents[1]
BF16, AWQ = "h100-llama-3.1-8b-bf16-measured", "h100-llama-3.1-8b-awq-measured"
NEAREST = "h100-llama-3.1-8b-bf16"
FITTED = ("c1", "p8", "p16", "p22")
MACHINE = "one NVIDIA H100 80GB HBM3 in a virtual machine of 16 virtual cores, vLLM 0.32.0, 2026-11-27; ours"
OF_MACHINE = "host and front end are this virtual machine's, which is slow; `--host` takes another machine's"
BF16_NOTES = (
    "fitted from the streams of vllm bench serve at temperature 0 (c1, p8, p16, p22: 1 to 90 requests at once, prompts of "
    "160 to 1,440); c16 and three replays within one process had no say (docs/accuracy.md)",
    "not told by the streams, and of h100-llama-3.1-8b-bf16 in proportion: attention, a decode's context beside prefills",
    OF_MACHINE,
    "memory: what vLLM resolved; reserve_bytes is what the parts that it names leave, not a measurement",
)
AWQ_NOTES = (
    "whole calls of a synchronous engine in one process: schedule, launch and update are inside. A server with asynchronous "
    "scheduling hides a part of them behind the device, and is quicker by up to 2 ms a step at small batches",
    "855 samples, on a machine that was not quiet: held-out errors of 8 % (decode) and 15 to 17 % (prefills)",
    f"the front end is {BF16}'s; {OF_MACHINE}",
)


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
    notes = {"source": f"fitted from the streams of a server: {MACHINE}", "licence": "free to use", "notes": BF16_NOTES}
    return _named(profile, BF16, engine, {**notes, "link": None})


def awq(folder: Path, of_server: MeasuredProfile) -> MeasuredProfile:
    """From samples of calls."""
    samples = _samples(folder, "awq-sync")
    profile = fit_samples(samples, name=AWQ).profile
    notes = {"source": f"calls of vLLM's engine: {MACHINE}", "licence": "free to use", "notes": AWQ_NOTES}
    host = {"source": f"calls of vLLM's engine: {MACHINE}; launches and updates are inside the step times"}
    host |= {"admit": {"base_s": profile.request_overhead_s}}
    content = {**notes, "host": host, "front_end": of_server.front_end, "request_overhead_s": 0.0}
    return _named(profile, AWQ, samples.engine, content)


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


def main() -> None:
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
    main()
