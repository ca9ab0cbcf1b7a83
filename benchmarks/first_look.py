"""A first look at truth, host and front end beside a real H100 server: `python -m benchmarks.first_look [--shared D]`.

Real `vllm serve` 0.32 and `vllm bench serve` on one H100 (../shared/gpu/h100-vllm-0.32/serve): closed loops of 1 and
16, Poisson at 8, 16 and 22 req/s. Simulated with the kernel-table profile alone, and with its device times x 1.03
beside a host and a front end whose constants are those of the NOTES there (`HOST`, `FRONT_END` say from which runs).
Errors are (simulated / real - 1). Nothing is fitted by this script, and it writes nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from simbatch.sim.cost.profile import load_profile
from simbatch.sim.scenario import Scenario
from simbatch.sim.simulate import simulate

SHARED = Path(__file__).parents[2] / "shared" / "gpu" / "h100-vllm-0.32" / "serve"
PROFILE, DEVICE_FACTOR = "h100-llama-3.1-8b-bf16", 1.03
RATIOS = {"share": [0, 0.01, 0.1, 0.5, 0.9, 0.99, 1], "ratio": [0.55, 0.58, 0.65, 0.96, 1.36, 2.5, 4.0]}
# launches: means over p8, p16, p22 and a bursty run; lag: in-process replays; graph: at most the step of c1
HOST = {
    "launch": {
        "graph": {"base_s": 0.004},
        "piecewise": {"base_s": 0.0163, "per_seq_s": 0.00003},
        "none": {"base_s": 0.0243, "per_seq_s": 0.00013},
    },
    "lag_s": 0.0034,
}
# the way in: set before the first run and left so; the way out: how fast the chunks of one step follow one another
FRONT_END = {"per_request_s": 0.003, "per_prompt_token_s": 0.000004, "per_chunk_s": 0.00006}
RUNS = {"c1": 1, "c16": 16, "p8": None, "p16": None, "p22": None}
METRICS = ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "p99_e2el_ms", "output_throughput")


def host_profile() -> dict[str, Any]:
    """The kernel-table profile, its device a little slower, with the host and the front end of that server."""
    content = load_profile(PROFILE, folder=Path()).model_dump(mode="json", exclude_none=True)
    content["step_time"] = _scaled(content["step_time"], DEVICE_FACTOR)
    for older in ("request_overhead_s", "client_overhead_s"):
        content.pop(older, None)
    shares, ratios = RATIOS["share"], RATIOS["ratio"]
    pairs = list(zip(shares, ratios, strict=True))
    mean = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(pairs))
    spread = {"share": shares, "ratio": [ratio / mean for ratio in ratios]}
    return content | {"host": HOST | {"spread": {"piecewise": spread, "none": spread}}, "front_end": FRONT_END}


def _scaled(value: Any, factor: float, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _scaled(item, factor, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_scaled(item, factor, key) for item in value]
    return value * factor if key.endswith("_s") else value


def simulated(profile: str, run: Path, concurrency: int | None) -> dict[str, Any]:
    """The run's requests on a profile, with the server's settings."""
    workload: dict[str, Any] = {"trace": {"path": str(run), "format": "vllm_bench"}}
    if concurrency is not None:
        workload["max_concurrency"] = concurrency
    engine = {
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "max_model_len": 16384,
        "num_gpu_blocks_override": 28588,
    }
    return simulate(Scenario.from_dict({"profile": profile, "engine": engine, "workload": workload})).summary


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with c1.json.gz, c16.json.gz, ...")
    shared = parser.parse_args().shared
    if not shared.is_dir():
        print(f"{shared} is not here: name the folder of the server's runs by --shared", file=sys.stderr)
        return 2
    print(f"{'run':<5} {'profile':<14} " + " ".join(f"{name:>18}" for name in METRICS))
    with tempfile.TemporaryDirectory() as folder:
        mine = Path(folder) / "with-host.json"
        mine.write_text(json.dumps(host_profile()))
        for name, concurrency in RUNS.items():
            run = Path(folder) / f"{name}.json"
            run.write_bytes(gzip.decompress((shared / f"{name}.json.gz").read_bytes()))
            real = json.loads(run.read_text())
            if concurrency is not None:  # a closed loop sends when one ends, not at the recorded times
                real["start_times"] = [0.0] * len(real["input_lens"])
                run.write_text(json.dumps(real))
            for label, profile in (("device alone", PROFILE), ("with host", str(mine))):
                summary = simulated(profile, run, concurrency)
                errors = [summary[metric] / real[metric] - 1 for metric in METRICS]
                print(f"{name:<5} {label:<14} " + " ".join(f"{error:>+17.1%} " for error in errors), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
