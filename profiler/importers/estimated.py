"""An estimate from a measured profile, with the command that makes it."""

from __future__ import annotations

from pathlib import Path

from simbatch.profiler.importers.source import portable
from simbatch.profiler.model.config import read_model_config
from simbatch.profiler.model.estimates import scaled_weights_profile
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.errors import Problem, UserError


def estimate_profile(base: str, quantisation: str, model_config: Path, output_name: str) -> MeasuredProfile:
    """Scale the weights of the profile `base`; raises UserError for one that holds no measurements of a model."""
    measured = load_profile(base, folder=Path())
    if not isinstance(measured, MeasuredProfile) or measured.is_estimate:
        raise UserError(Problem("--base", "must be a profile that was measured", base, "see simbatch profiles list"))
    config = read_model_config(model_config)
    command = (
        f"simbatch profiles estimate --base {portable(Path(base))} --quantization {quantisation} "
        f"--model-config {portable(model_config)} -o {output_name}"
    )
    return scaled_weights_profile(measured, config, quantisation, command)
