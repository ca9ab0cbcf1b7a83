"""Make the profiles that ship again, by the command in each, and compare: `python -m benchmarks.shipped_profiles`.

The measurements of others lie in ../shared/gpu and are no part of the project. --write puts new files in the place of
those that differ. What an older simbatch made, or `benchmarks.measured_profiles` makes, is passed over.

`... page` writes the table of shipped profiles in docs/profiles.md anew. `... estimates` says how far estimates and
imports are from profiles that were measured:
every measured profile that ships is put beside the roofline of its model, and beside aiconfigurator-core's import where
that package has its GPU; steps are drawn at random over what all of them cover. The roofline's constants were read off
aiconfigurator's tables: only LLMServingSim's profiles and a real server's are held out of both. docs/profiles.md has
the table.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import parser_of, run_one_of
from simbatch.profiler.importers import import_profile
from simbatch.profiler.importers.core_package import SYSTEMS
from simbatch.profiler.importers.source import ImportRequest, StepLimits, sample_steps
from simbatch.profiler.model.published import find_model
from simbatch.profiler.model.roofline import roofline_of
from simbatch.profiler.records import predict_s
from simbatch.sim.cost.by_name import load_profile, profile_json, shipped_names, shipped_text
from simbatch.sim.cost.gpus import GPUS
from simbatch.sim.cost.model import CostModel, step_ps_alike
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.errors import UserError
from simbatch.sim.json_values import json_object

ROOT = Path(__file__).parents[1]


def command_of(name: str) -> list[str]:
    """The words of the command that stands in a shipped profile."""
    return str(json_object(shipped_text(name), name)["command"]).split()


def is_remade(name: str) -> bool:
    """Whether that is a command of today's `simbatch`."""
    words = command_of(name)
    return words[0] == "simbatch" and words[-2:] == ["-o", f"{name}.json"]


def remake(name: str, folder: Path) -> Path:
    """Run that command, its output put into `folder`; raises CalledProcessError."""
    words = command_of(name)
    output = folder / words[-1]
    command = [sys.executable, "-m", "simbatch", *words[1:-1], str(output)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return output


def with_real_runs(name: str, made: Path) -> str:
    """The file's text with the shipped one's real runs: those were simulated from it, so no command makes them."""
    text = made.read_text(encoding="utf-8")
    runs = json_object(shipped_text(name), name).get("real_runs")
    if runs is None:
        return text
    return profile_json(MeasuredProfile.model_validate({**json_object(text, name), "real_runs": runs}))


def remake_all() -> None:
    """Compare all, or those named; exit code 1 when one differs."""
    parser = parser_of(__doc__)
    parser.add_argument("names", nargs="*", help="profiles; all that ship if none is named")
    parser.add_argument("--write", action="store_true", help="replace the files that differ")
    options = parser.parse_args()
    names = options.names or [name for name in shipped_names() if is_remade(name)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda name: with_real_runs(name, remake(name, Path(folder))), names)
        different = [(name, text) for name, text in zip(names, made, strict=True) if text != shipped_text(name)]
    for name, text in different:
        print(f"{name}: differs")
        if options.write:
            (ROOT / "profiles" / f"{name}.json").write_text(text, encoding="utf-8")
    print(f"{len(names) - len(different)} of {len(names)} identical")
    sys.exit(bool(different))


PROFILES_PAGE = Path(__file__).parents[1] / "docs" / "profiles.md"
HEAD = "| profile | decode | prefill | mixed | a decode (ms) | 64 decodes (ms) | a prefill of 2,048 (ms) |"
CONTEXT, PROMPT = 1024, 2048
PS_PER_MS = 1e9


def rows() -> Iterator[str]:
    """Held-out errors, and what three steps last."""
    for name in shipped_names():
        profile = load_profile(name, folder=Path())
        cost, error = profile.cost_model(), profile.fit_error
        parts = (error.decode, error.prefill, error.mixed) if error else ()
        errors = [f"{100 * part.mape:.1f} %" if part.num_steps else "-" for part in parts] or ["-"] * 3
        decodes = [step_ps_alike(cost, n, n * CONTEXT) for n in (1, 64)]
        times = [*decodes, step_ps_alike(cost, 0, 0, PROMPT, PROMPT, PROMPT * PROMPT)]
        yield f"| `{name}` | {' | '.join(errors)} | {' | '.join(f'{time / PS_PER_MS:.1f}' for time in times)} |"


def write_page() -> None:
    """Put the rows in the place of those that stand there."""
    lines = PROFILES_PAGE.read_text(encoding="utf-8").splitlines()
    first = lines.index(HEAD) + 2
    last = next(i for i in range(first, len(lines)) if not lines[i].startswith("|"))
    PROFILES_PAGE.write_text("\n".join([*lines[:first], *rows(), *lines[last:]]) + "\n", encoding="utf-8")


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


def estimates() -> None:
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
    run_one_of(remake_all, page=write_page, estimates=estimates)
