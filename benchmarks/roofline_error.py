"""How far the roofline is from the profiles that were measured: `python -m benchmarks.roofline_error MODELS`.

MODELS is a folder with one folder a model, each with its config.json; profiles of other models are left out. Steps are
drawn at random over what RTX 4090's profile covers; the table of docs/memory.md is what this prints.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from simbatch.profiler.fit.design import StepLimits, sample_steps
from simbatch.profiler.model.config import read_model_config
from simbatch.profiler.model.roofline import roofline_of
from simbatch.profiler.records.steps import predict_s
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.gpus import GPUS
from simbatch.sim.cost.load import shipped_names
from simbatch.sim.cost.profile import MeasuredProfile

LIMITS = StepLimits((1, 256), (1, 128), (16, 16384), (16, 2048), (0, 16384), 2048, 80_000)
NUM_STEPS, SEED = 1000, 3


def row(profile: MeasuredProfile, folder: Path) -> str:
    """Mean absolute error and bias in each regime, and where the profile is from."""
    shape = profile.quantisation, profile.kv_cache_dtype, profile.tensor_parallel_size
    estimated = roofline_of(read_model_config(folder), GPUS[profile.gpu], *shape).step_time().cost_model()
    cells = []
    for regime in ("decode", "prefill", "mixed"):
        steps = sample_steps(regime, NUM_STEPS, LIMITS, SEED)
        there, here = predict_s(profile.cost_model(), steps), predict_s(estimated, steps)
        cells.append(f"{np.abs(here / there - 1).mean():.0%} ({here.sum() / there.sum() - 1:+.0%})")
    return f"| {profile.name} | {' | '.join(cells)} | {profile.source.split(' ')[0].rstrip(',')} |"


def main() -> None:
    """Print the table."""
    models = {path.name.removesuffix("-instruct"): path for path in Path(sys.argv[1]).iterdir() if path.is_dir()}
    print("| profile | decode | prefill | mixed | measured by |")
    print("|---|---|---|---|---|")
    for name in shipped_names():
        profile = load_profile(name, folder=Path())
        model = profile.model.rsplit("/", 1)[-1].lower() if isinstance(profile, MeasuredProfile) else ""
        if isinstance(profile, MeasuredProfile) and not profile.is_estimate and model in models:
            print(row(profile, models[model]))


if __name__ == "__main__":
    main()
