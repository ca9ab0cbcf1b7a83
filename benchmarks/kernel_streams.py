"""Kernel-table imports with an assumed host beside other people's servers: `python -m benchmarks.kernel_streams`.

Each model is imported for 8 x H100 by `simbatch profiles import`'s own code; every run of the server's streams is
simulated with its lengths, in a closed loop as large, once with host and front end as assumed and once with the device
alone. The streams lie in ../shared/streams, the tables in ../shared/gpu, the models in ../shared/models; they are no
part of the project. The assumed constants were rounded with these two servers in sight; the tables were not fitted.
docs/accuracy.md has the table.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks.stream_fit import SHARED, require, write_runs
from simbatch.profiler.fit.streams.runs import real_means, simulated_means, streams_of
from simbatch.profiler.importers.imported import import_profile
from simbatch.profiler.importers.source import ImportRequest
from simbatch.profiler.records.recorded import read_recorded

DEGREE = 8
SETTINGS = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "enable_prefix_caching": False}


class Server(NamedTuple):
    """A model's published name, its config.json below shared/models, and the file of its streams."""

    model: str
    config: str
    streams: str


SERVERS = (
    Server("meta-llama/Llama-3.1-70B", "llama-3.1-70b-instruct", "scicom-h100-Llama-3.1-70B-tp8"),
    Server("Qwen/Qwen3-8B", "more/qwen3-8b", "scicom-h100-Qwen3-8B-tp8"),
)


def imported(server: Server, shared: Path) -> dict[str, Any]:
    """The profile as `profiles import` writes it."""
    request = ImportRequest(
        source="aiconfigurator",
        folder=require(shared, "gpu/aiconfigurator/h100_sxm"),
        output_name="profile.json",
        model=server.model,
        tensor_parallel_size=DEGREE,
        model_config=require(shared, f"models/{server.config}/config.json"),
    )
    return import_profile(request).model_dump(mode="json", exclude_defaults=True)


def errors(profile: dict[str, Any], paths: list[Path]) -> Any:
    """Simulated over recorded means less 1: [run, (TTFT, TPOT, E2EL)]."""
    runs = [streams_of(read_recorded(path)) for path in paths]
    return np.array([simulated_means(profile, SETTINGS, run).errors(real_means(run)) for run in runs])


def main() -> None:
    """Print the table: median |error| and bias, in per cent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder of streams, gpu and models")
    shared = parser.parse_args().shared
    print("| server | simulated | runs | E2EL | TPOT | TTFT |\n|---|---|---|---|---|---|")
    for server in SERVERS:
        profile = imported(server, shared)
        alone = {key: value for key, value in profile.items() if key not in ("host", "front_end")}
        with TemporaryDirectory() as folder:
            paths = write_runs(require(shared, f"streams/{server.streams}.json.gz"), Path(folder))
            for name, content in (("device alone", alone), ("host assumed", profile)):
                found = 100 * errors(content, paths)
                median, bias = np.median(np.abs(found), axis=0), np.median(found, axis=0)
                cells = [f"{median[i]:.1f} ({bias[i]:+.1f})" for i in (2, 1, 0)]
                print(f"| {server.model} | {name} | {len(found)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
