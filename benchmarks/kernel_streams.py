"""Imports and estimates with an assumed host beside other people's servers: `python -m benchmarks.kernel_streams`.

Each model is imported for 8 x H100 from aiconfigurator's package, and estimated by the roofline; every run of the
server's streams is simulated with its lengths, in a closed loop as large, with host and front end as assumed and, of
the package, with the device alone. The streams lie in ../shared/streams; they are no part of the project. The assumed
constants were rounded with the two dense servers in sight; neither tables nor roofline were fitted to any, and gpt-oss
had no say in anything. docs/accuracy.md has the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks.stream_fit import SHARED, require, write_runs
from simbatch.profiler.fit.streams.runs import real_means, simulated_means, streams_of
from simbatch.profiler.importers import import_profile
from simbatch.profiler.importers.source import ImportRequest
from simbatch.profiler.model.estimates import roofline_profile
from simbatch.profiler.model.published import find_model
from simbatch.profiler.records.recorded import read_recorded
from simbatch.sim.cost.gpus import GPUS
from simbatch.sim.cost.profile import MeasuredProfile

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


def main() -> None:
    """Print the table: median |error| and bias, in per cent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder of streams")
    shared = parser.parse_args().shared
    print("| server | simulated | runs | E2EL | TPOT | TTFT |\n|---|---|---|---|---|---|")
    for server in SERVERS:
        with TemporaryDirectory() as folder:
            paths = write_runs(require(shared, f"streams/{server.streams}.json.gz"), Path(folder))
            for name, content in profiles_of(server):
                found = 100 * errors(content, paths)
                median, bias = np.median(np.abs(found), axis=0), np.median(found, axis=0)
                cells = [f"{median[i]:.1f} ({bias[i]:+.1f})" for i in (2, 1, 0)]
                print(f"| {server.model} | {name} | {len(found)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
