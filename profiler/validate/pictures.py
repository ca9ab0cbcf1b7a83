"""What a validation leaves: validation.json, latency.png, timeline.png and errors.png.

Real runs and their simulation are drawn over each other, or beside each other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.records.real_run import RealRun
from simbatch.profiler.validate import CLIENT, Validation
from simbatch.profiler.validate.many import Many
from simbatch.sim.engine.record import FINISHED, RunRecord
from simbatch.sim.files import write_json
from simbatch.sim.metrics import curves
from simbatch.sim.metrics.latencies import latencies_ms
from simbatch.sim.metrics.step_function import Curve, StepFunction
from simbatch.sim.report import style
from simbatch.sim.report.run_pictures import binned, end_s
from simbatch.sim.results.files import Writers, write_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

OWN_FILES = ("validation.json", "latency.png", "timeline.png", "errors.png", "report.html")
NUM_BINS = 250
REAL, SIMULATED = style.INK, style.PALETTE[1]
LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "E2EL"}
Panel = tuple[str, str, Callable[[RunRecord], StepFunction]]


def save(validation: Validation | Many, folder: Path, more: Writers | None = None) -> list[Path]:
    """Write validation.json and the pictures to `folder`, and what `more` writes (a page); returns their paths."""
    writers: dict[str, Callable[[Path], None]] = {
        "validation.json": lambda path: write_json(path, validation.as_dict()),
        **(more or {}),
    }
    if isinstance(validation, Many):
        writers["errors.png"] = lambda path: write_errors(path, validation)
    elif validation.recorded:
        writers["latency.png"] = lambda path: write_latency(path, validation)
        writers["timeline.png"] = lambda path: write_timeline(path, validation)
    runs = [run.validation for run in validation.runs] if isinstance(validation, Many) else [validation]
    versions = [str(run.simulated.facts.engine["vllm_version"]) for run in runs]
    return write_result(folder, writers, OWN_FILES, versions)


def write_latency(path: Path, validation: Validation) -> None:
    """Three cumulative distributions, every real run in ink, the simulation in colour."""
    with style.figure(path, 12, 4.2) as drawing:
        style.headline(drawing, f"{validation.name}: latency, real and simulated")
        for axes, name in zip(drawing.subplots(1, 3), LATENCIES, strict=True):
            _distribution(axes, name, validation)
        first = drawing.axes[0]
        first.set_ylabel("share of requests")
        first.legend(handles=_handles(validation), loc="upper left", borderaxespad=0.2)


def write_timeline(path: Path, validation: Validation) -> None:
    """What runs and what waits, over one time axis."""
    panels = panels_of(validation)
    records = [run.record for run in validation.recorded]
    with style.figure(path, 12, 2.6 + 2.2 * len(panels)) as drawing:
        style.headline(drawing, f"{validation.name}: the engine over time, real and simulated")
        all_axes = drawing.subplots(len(panels), 1, sharex=True)
        divisor = style.time_axis(all_axes[-1], max(map(end_s, [*records, validation.simulated.record])))
        for axes, (title, unit, curve) in zip(all_axes, panels, strict=True):
            for record in records:
                edges, mean, _ = binned(curve(record), record, NUM_BINS)
                axes.stairs(mean, edges / divisor, baseline=None, color=REAL, linewidth=1.0, alpha=_alpha(validation))
            edges, mean, _ = binned(curve(validation.simulated.record), validation.simulated.record, NUM_BINS)
            axes.stairs(mean, edges / divisor, baseline=None, color=SIMULATED, linewidth=1.5)
            axes.set_title(title)
            axes.set_ylabel(unit)
            style.count_axis(axes, float(axes.dataLim.y1))
        drawing.align_ylabels()
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2, "borderpad": 0}
        all_axes[0].legend(handles=_handles(validation), **place)


def write_errors(path: Path, many: Many) -> None:
    """Mean TTFT, TPOT and E2EL of every run, simulated over real; on the line they agree."""
    with style.figure(path, 12, 4.4) as drawing:
        style.headline(drawing, f"{many.runs[0].validation.name}: {len(many.runs)} runs, simulated over real")
        for axes, name in zip(drawing.subplots(1, 3), LATENCIES, strict=True):
            _agreement(axes, name, many)


def _agreement(axes: Axes, name: str, many: Many) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    figures = [(run, run.figure(f"mean_{name}_ms")) for run in many.runs]
    points = [(run, f.median, f.simulated) for run, f in figures if f is not None and f.simulated]
    size = many.median_error(f"mean_{name}_ms")
    axes.set_title(f"mean {LATENCIES[name]}" + ("" if size is None else f", median |error| {size:.1%}"))
    if not points:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color="#888888")
        return
    real, simulated = np.array([(x, y) for _, x, y in points]).T
    low, high = 0.8 * min(real.min(), simulated.min()), 1.25 * max(real.max(), simulated.max())
    axes.plot([low, high], [low, high], color="#999999", linewidth=1)
    axes.scatter(real, simulated, s=22, color=SIMULATED, alpha=0.8, linewidths=0)
    worst = [(x, y) for run, x, y in points if run is many.worst]
    if worst:
        axes.scatter(*worst[0], s=60, facecolors="none", edgecolors=REAL)
        axes.annotate("worst", worst[0], xytext=(7, -9), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="real (ms)", aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_formatter(NullFormatter())
    if name == next(iter(LATENCIES)):
        axes.set_ylabel("simulated (ms)")


def _distribution(axes: Axes, name: str, validation: Validation) -> None:
    real = [latencies_of(run, name) for run in validation.recorded]
    simulated = latencies_of(validation.simulated, name)
    everything = [values for values in [*real, simulated] if len(values)]
    axes.set_title(f"{LATENCIES[name]}{_error_text(name, validation)}")
    if not everything:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color="#888888")
        return
    style.latency_axis(axes, min(v.min() for v in everything), max(v.max() for v in everything), max_labels=5)
    for values in real:
        if len(values):
            style.cdf(axes, *style.sorted_shares(values), color=REAL, linewidth=1.1, alpha=_alpha(validation))
    if len(simulated):
        style.cdf(axes, *style.sorted_shares(simulated), color=SIMULATED, linewidth=1.7)


def _error_text(name: str, validation: Validation) -> str:
    errors = {figure.metric.key: figure.error for figure in validation.figures if figure.clock == CLIENT}
    shown = {word: errors.get(f"{word}_{name}_ms") for word in ("mean", "p99")}
    return "".join(f", {word} {error:+.1%}" for word, error in shown.items() if error is not None)


def latencies_of(run: RealRun, name: str) -> NDArray[np.float64]:
    """Of the requests that finished, in ms."""
    return latencies_ms(run.record, run.record.requests.status == FINISHED)[name]


def panels_of(validation: Validation) -> list[Panel]:
    """The scheduler's own counts where the steps were recorded, else what the requests' times say."""
    runs = validation.recorded
    if all(run.has_steps for run in runs):
        waiting: Panel = ("waiting", "requests", curves.waiting_with_preempted)
        return [("batch size", "requests in the step", curves.batch_size), waiting]
    if all(run.has_queue for run in runs):
        running: Panel = ("begun and not finished", "requests", _counting("scheduled_ps", "finish_ps"))
        return [running, ("waiting for their first step", "requests", _counting("arrival_ps", "scheduled_ps"))]
    decoding: Panel = ("between first and last token", "requests", _counting("first_token_ps", "finish_ps"))
    return [decoding, ("waiting for their first token", "requests", _counting("arrival_ps", "first_token_ps"))]


def _counting(begin: str, end: str) -> Callable[[RunRecord], StepFunction]:
    def curve(record: RunRecord) -> StepFunction:
        requests = record.requests
        done = requests.status == FINISHED
        return Curve.counting(getattr(requests, begin)[done], getattr(requests, end)[done])

    return curve


def _handles(validation: Validation) -> list[Line2D]:
    from matplotlib.lines import Line2D

    num_runs = len(validation.recorded)
    label = "real" if num_runs == 1 else f"real, {num_runs} runs"
    return [Line2D([], [], color=REAL, label=label), Line2D([], [], color=SIMULATED, label="simulated")]


def _alpha(validation: Validation) -> float:
    return 1.0 if len(validation.recorded) == 1 else 0.5
