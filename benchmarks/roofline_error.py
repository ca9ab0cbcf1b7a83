"""How far estimates and imports are from profiles that were measured: `python -m benchmarks.roofline_error`.

Every measured profile that ships is put beside the roofline of its model, and beside aiconfigurator-core's import where
that package has its GPU; steps are drawn at random over what all of them cover. The roofline's constants were read off
aiconfigurator's tables: only LLMServingSim's profiles and a real server's are held out of both. docs/profiles.md has
the table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simbatch.profiler.fit.two_regime import StepLimits, sample_steps
from simbatch.profiler.importers import import_profile
from simbatch.profiler.importers.core_package import SYSTEMS
from simbatch.profiler.importers.source import ImportRequest
from simbatch.profiler.model.published import find_model
from simbatch.profiler.model.roofline import roofline_of
from simbatch.profiler.records import predict_s
from simbatch.sim.cost.by_name import load_profile, shipped_names
from simbatch.sim.cost.gpus import GPUS
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.errors import UserError

LIMITS = StepLimits((1, 256), (1, 128), (16, 16384), (16, 2048), (0, 16384), 2048, 80_000)
# What a real server's steps covered: no histories, contexts of a few thousand tokens.
SERVED = StepLimits((1, 119), (1, 100), (16, 4096), (16, 2048), (0, 16), 2048, 80_000)
NUM_STEPS, SEED = 1000, 3


def cells(measured: MeasuredProfile, other: CostModel | None) -> str:
    """Mean absolute error and bias in each regime; `-` where there is nothing to compare."""
    if other is None:
        return "- | - | -"
    limits, found = SERVED if measured.name.endswith("-measured") else LIMITS, []
    for regime in ("decode", "prefill", "mixed"):
        steps = sample_steps(regime, NUM_STEPS, limits, SEED)
        there, here = predict_s(measured.cost_model(), steps), predict_s(other, steps)
        found.append(f"{np.abs(here / there - 1).mean():.0%} ({here.sum() / there.sum() - 1:+.0%})")
    return " | ".join(found)


def is_greedy(profile: MeasuredProfile) -> bool:
    """Whether it was measured at temperature 0: what was measured as steps; kernel tables have sampling added."""
    return "aiconfigurator" not in profile.source


def estimated(profile: MeasuredProfile) -> CostModel | None:
    """The roofline of a profile's model, sampling as that was measured; None where the model is not known."""
    shape = profile.quantisation, profile.kv_cache_dtype, profile.tensor_parallel_size
    try:
        roofline = roofline_of(find_model(profile.model)[0], GPUS[profile.gpu], *shape, greedy=is_greedy(profile))
        return roofline.step_time().cost_model()
    except UserError:
        return None


def imported(profile: MeasuredProfile) -> CostModel | None:
    """Aiconfigurator-core's, sampling as the measured one; None where the package has no such tables."""
    if profile.gpu not in SYSTEMS:
        return None
    kv = "fp8" if profile.kv_cache_dtype.startswith("fp8") else "auto"
    request = ImportRequest(
        source="aiconfigurator-core",
        folder=None,
        output_name="profile.json",
        model=profile.model,
        gpu=profile.gpu,
        quantisation=profile.quantisation,
        kv_cache_dtype=kv,
        tensor_parallel_size=profile.tensor_parallel_size,
        greedy=is_greedy(profile),
    )
    try:
        return import_profile(request).cost_model()
    except UserError:
        return None


def main() -> None:
    """Print the table."""
    print("| profile | roofline: decode | prefill | mixed | package: decode | prefill | mixed | measured by |")
    print("|---|---|---|---|---|---|---|---|")
    for name in shipped_names():
        profile = load_profile(name, folder=Path())
        if not isinstance(profile, MeasuredProfile) or profile.is_estimate or "-core" in profile.source:
            continue
        source = profile.source.split(" ")[0].rstrip(",")
        print(
            f"| `{name}` | {cells(profile, estimated(profile))} | {cells(profile, imported(profile))} | {source} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
