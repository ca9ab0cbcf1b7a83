"""docs/one-step.png: eight steps of a run on host, device and front end. `python -m benchmarks.one_step` (`make docs`).

The times are round ones of the size that an H100's server has (docs/one-step.md); the run is a real simulation.

`python -m benchmarks.one_step notebook` runs the notebook that ships anew, and stores what it shows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nbclient
import nbformat
import numpy as np
from numpy.typing import NDArray

from benchmarks import run_one_of
from simbatch import Scenario
from simbatch.sim.clock import PS_PER_MS
from simbatch.sim.engine.record import RunRecord, StepRow
from simbatch.sim.engine.resources import Host
from simbatch.sim.metrics.curves import first_steps_ps
from simbatch.sim.report import style
from simbatch.sim.scenario import resolve
from simbatch.sim.search import run_resolved

if TYPE_CHECKING:
    from matplotlib.axes import Axes


PICTURE = Path(__file__).parents[1] / "docs" / "one-step.png"
NUM_STEPS, FIRST_PREFILL, WARM_UP, NEIGHBOURS = 8, 2, 100, 3
LANES = {"front end, in": 3, "host": 2, "device": 1, "front end, out": 0}
DECODES, PREFILLS, OTHERS, REQUESTS = (style.PALETTE[4], "#9AD0A8"), style.PALETTE[1], "#E4E4E4", "#8A8A8A"
SCENARIO: dict[str, Any] = {
    "profile": {
        "num_gpu_blocks": 28588,
        "step_time": {
            **{"base_s": 0.0062, "per_prefill_token_s": 1.6e-5},
            **{"per_decode_seq_s": 3e-5, "per_context_token_s": 2e-8},
        },
        "host": {
            "launch": {
                "graph": {"base_s": 0.003, "per_seq_s": 1e-5},
                "piecewise": {"base_s": 0.015, "per_seq_s": 3e-5},
                "none": {"base_s": 0.024, "per_seq_s": 1e-4},
            },
            "update": {"base_s": 0.0006, "per_seq_s": 1e-5},
            "lag_s": 0.0034,
            "tail_s": 0.0005,
        },
        "front_end": {"per_request_s": 0.003, "per_prompt_token_s": 1e-6, "per_chunk_s": 6e-5, "network_s": 0.0003},
    },
    "engine": {"async_scheduling": True, "max_num_batched_tokens": 8192},
    "workload": {
        "num_prompts": 200,
        "request_rate": 16,
        "prompt_len": {"distribution": "uniform", "min": 160, "max": 1440},
        "output_len": {"distribution": "uniform", "min": 40, "max": 360},
    },
    "seed": 1,
}


class Life(NamedTuple):
    """A step's way, in ms."""

    num_prompts: int  # entries that are not decodes
    schedule: float  # S
    launched: float  # L
    start: float  # the device begins
    end: float  # D
    updating: float  # the host begins to take its tokens in
    updated: float  # U
    sending: float  # the front end begins to send its chunks
    sent: float  # V


def lives(record: RunRecord, host: Host) -> list[Life]:
    """Every step of a run that kept them."""
    steps, sent_ps = record.steps or [], sent_times_ps(record)
    before_ps = np.append(0, sent_ps)
    ways = []
    for step, sent, before in zip(steps, sent_ps.tolist(), before_ps.tolist(), strict=False):
        updating = step.updated_ps - host.update_ps(len(step.scheduled))
        times = (step.schedule_ps, step.launched_ps, step.start_ps, step.end_ps, updating, step.updated_ps)
        ms = [time / PS_PER_MS for time in (*times, max(step.updated_ps, before), sent)]
        ways.append(Life(num_prompts(step, record.requests.num_prompt_tokens), *ms))
    return ways


def sent_times_ps(record: RunRecord) -> NDArray[np.int64]:
    """When the chunks of each step have left the front end, V, step after step."""
    rows = record.token_rows
    k = np.concatenate([np.arange(1, n + 1) for n in rows["num_steps"].tolist()])
    start, duration, slope = (
        np.repeat(rows[name], rows["num_steps"]) for name in ("start_ps", "duration_ps", "slope_ps")
    )
    return start + first_steps_ps(duration, slope, k)


def num_prompts(step: StepRow, prompt_tokens: NDArray[np.int64]) -> int:
    """How many prompts, or parts of them, are computed in a step."""
    return sum(computed < int(prompt_tokens[index]) for index, _, computed in step.scheduled)


def chosen(ways: list[Life]) -> int:
    """The first step after the warm-up from which the third, and one other that is not its neighbour, has prefills."""
    for first in range(WARM_UP, len(ways) - NUM_STEPS - NEIGHBOURS):
        with_prefills = [i for i in range(NUM_STEPS) if ways[first + i].num_prompts]
        if with_prefills in ([FIRST_PREFILL, i] for i in (4, 5, 6)):
            return first
    raise AssertionError("no such steps in this run")


def draw(path: Path, ways: list[Life], first: int, arrivals: list[tuple[float, float]]) -> None:
    """A bar a stay, a colour a step, grey those before and after; `arrivals`: when requests were sent, and taken in."""
    begin, last = ways[first].schedule, first + NUM_STEPS - 1
    with style.figure(path, 11, 4.6) as drawing:
        style.headline(drawing, "Eight steps on host, device and front end (asynchronous scheduling)")
        axes = drawing.subplots()
        for k in range(first - NEIGHBOURS, last + NEIGHBOURS + 1):
            is_shown = first <= k <= last
            colour = PREFILLS if ways[k].num_prompts else DECODES[k % 2]
            _step(axes, ways[k], colour if is_shown else OTHERS, str(k - first + 1) if is_shown else "")
        for sent, taken_in in arrivals:
            _bar(axes, "front end, in", sent, taken_in, REQUESTS)
        _marks(axes, ways[first + FIRST_PREFILL])
        axes.set_yticks(list(LANES.values()), list(LANES))
        axes.set(xlim=(begin, ways[last].sent + 1), ylim=(-0.9, 3.5), xlabel="ms")
        axes.set_xticks(np.arange(begin, ways[last].sent, 10), np.arange(0, ways[last].sent - begin, 10, dtype=int))
        axes.grid(visible=False, axis="y")
        _legend(axes)


def _step(axes: Axes, life: Life, colour: str, text: str) -> None:
    _bar(axes, "host", life.schedule, life.launched, colour, text)
    _bar(axes, "host", life.updating, life.updated, colour, hatch="////")
    _bar(axes, "device", life.start, life.end, colour, text)
    _bar(axes, "front end, out", life.sending, life.sent, colour)


def _bar(axes: Axes, lane: str, begin: float, end: float, colour: str, text: str = "", hatch: str = "") -> None:
    height = LANES[lane]
    axes.barh(height, end - begin, 0.5, begin, color=colour, edgecolor="white", linewidth=0.6, hatch=hatch)
    if text:
        axes.text((begin + end) / 2, height, text, ha="center", va="center", fontsize=9, clip_on=True)


def _marks(axes: Axes, life: Life) -> None:
    """S, L, D, U and V of one step, as lines through all lanes."""
    times = {"S": life.schedule, "L": life.launched, "D": life.end, "U": life.updated, "V": life.sent}
    box = {"color": "white", "pad": 0.8}
    for i, (name, time) in enumerate(times.items()):
        axes.axvline(time, color=style.INK, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.text(time, -0.55 - 0.2 * (i % 2), name, ha="center", fontsize=9, fontweight="bold", bbox=box)


def _legend(axes: Axes) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=DECODES[0], label="decodes alone"),
        Patch(color=DECODES[1], label="the same, the next step"),
        Patch(color=PREFILLS, label="with a prefill"),
        Patch(facecolor=OTHERS, edgecolor="white", hatch="////", label="update"),
        Patch(color=REQUESTS, label="a request's way in"),
    ]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=5, borderpad=0, fontsize=8)


def main(path: Path = PICTURE) -> list[Life]:
    """Simulate and draw; returns the steps of the picture."""
    resolved = resolve(Scenario.from_dict(SCENARIO))
    record = run_resolved(resolved, steps=True).record
    assert resolved.engine.host is not None
    ways = lives(record, Host(resolved.engine.host, resolved.engine.max_capture_size))
    first = chosen(ways)
    requests = record.requests
    assert requests.queued_ps is not None
    draw(path, ways, first, list(zip(requests.arrival_ps / PS_PER_MS, requests.queued_ps / PS_PER_MS, strict=True)))
    return ways[first : first + NUM_STEPS]


NOTEBOOK = Path(__file__).parents[1] / "docs" / "invent-a-policy.ipynb"


def executed(path: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """The notebook with the outputs of this Python, whatever kernels are installed; run in a folder of its own."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"], os.environ["JUPYTER_DATA_DIR"] = folder, f"{folder}/share/jupyter"
        install = [sys.executable, "-m", "ipykernel", "install", "--prefix", folder]
        subprocess.run(install, check=True, capture_output=True)
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return notebook


def without_times(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """As it is stored: nothing of this machine or hour, so that the same notebook is the same file."""
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        cell.metadata = {}
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def notebook() -> None:
    """Run the notebook that ships, and store what it shows."""
    nbformat.write(without_times(executed()), NOTEBOOK)


if __name__ == "__main__":
    run_one_of(main, notebook=notebook)
