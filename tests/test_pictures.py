"""What pictures show: axes with units, scales, the lines that must be there; each was looked at too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from simbatch import Scenario, compare, simulate, sweep
from simbatch.sim.report import run_pictures, step_times, style
from simbatch.sim.report.compare import ReplicatedComparison
from simbatch.sim.report.compare_pictures import write_differences
from simbatch.sim.search import sweep_plot
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning.goal import Goal, metric_of
from simbatch.sim.tuning.space import Space, axes_of
from simbatch.sim.tuning.tune import tune
from simbatch.sim.tuning.tune_files import draw, picture_axes
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.traces.statistics import describe

SEATS, RATE = "engine.max_num_seqs", "workload.request_rate"
LENGTHS = {"distribution": "lognormal", "mean": 40, "cv": 0.8}
SCENARIO = Scenario.from_dict(
    {
        "profile": {"num_gpu_blocks": 40, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.002}},
        "engine": {"max_num_seqs": 8, "max_model_len": 500, "async_scheduling": False},
        "workload": {"num_prompts": 100, "request_rate": 6, "prompt_len": LENGTHS, "output_len": LENGTHS},
        "slo": {"ttft_ms": 900, "tpot_ms": 30},
    },
    name="small",
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is written meanwhile."""
    figures: list[Figure] = []

    def keep(drawing: Figure, _file: Any) -> None:
        drawing.draw_without_rendering()
        figures.append(drawing)

    monkeypatch.setattr(style, "_write_png", keep)
    return figures


def texts(artists: Any) -> list[str]:
    return [artist.get_text() for artist in artists]


def test_a_heat_map_has_the_slo_s_border_round_what_keeps_it(drawn: list[Figure], tmp_path: Path) -> None:
    result = sweep(SCENARIO, {RATE: [2, 12], SEATS: [1, 8]}, jobs=1)
    result.save(tmp_path)
    (figure,) = drawn
    panels = [axes for axes in figure.axes if axes.get_xlabel() == SEATS]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["Request throughput (req/s)", "Request goodput (req/s)", "P99 TTFT", "P99 TPOT"]
    points = {(point[SEATS], point[RATE]): point for point in result.points}
    for axes, own in zip(panels, ({"ttft", "tpot"}, {"ttft", "tpot"}, {"ttft"}, {"tpot"}), strict=True):
        limits = {"ttft": 900, "tpot": 30}
        kept = {
            (i, j): not point["overloaded_runs"] and all(point[f"p99_{name}_ms"] <= limits[name] for name in own)
            for i, seats in enumerate((1, 8))
            for j, rate in enumerate((2, 12))
            if (point := points[seats, rate])
        }
        edges = sum(kept[i, j] != kept.get((i + 1, j), False) for i, j in kept) + sum(
            kept[i, j] != kept.get((i, j + 1), False) for i, j in kept
        )
        edges += sum(kept[0, j] for j in (0, 1)) + sum(kept[i, 0] for i in (0, 1))
        assert len(axes.lines) == edges, axes.get_title(loc="left")
        assert {to_hex(line.get_color()) for line in axes.lines} <= {style.LIMIT.lower()}
    assert any(kept.values())
    assert sweep_plot.choose(result.points, [RATE, SEATS]) is not None  # and without an SLO there is none


def test_what_tune_tried_carries_its_settings(drawn: list[Figure], tmp_path: Path) -> None:
    goal = Goal((metric_of("goodput", "x"),))
    space = Space(SCENARIO, axes_of({SEATS: [1, 2, 4, 8]}, "x"), "x")
    tuned = tune(space, goal, Runner(SCENARIO, jobs=1), trials=4, replications=1, confirm=0)
    draw(tmp_path / "tune.png", tuned, picture_axes(goal))
    (figure,) = drawn
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("P99 TPOT (ms)", "Request goodput (req/s)")
    assert axes.get_title() == "" != axes.get_title(loc="left")
    assert {"1", "2", "4"} & {*texts(axes.texts)}
    assert axes.get_position().width > 0.8  # a long legend leaves the axes their room


def test_differences_are_the_headline_rows(drawn: list[Figure], tmp_path: Path) -> None:
    seats = {"8 seats": SCENARIO, "4 seats": SCENARIO.override({SEATS: 4})}
    compared = compare(SCENARIO, seats, replications=3, jobs=1)
    assert isinstance(compared, ReplicatedComparison)
    write_differences(tmp_path / "differences.png", "small", compared)
    (figure,) = drawn
    names = texts(figure.axes[0].get_yticklabels())
    assert 3 <= len(names) <= 8
    assert figure.axes[0].get_xscale() == "log"
    assert names[0] == "Request goodput (req/s)  →"


def test_a_timeline_shows_who_was_preempted(drawn: list[Figure], tmp_path: Path) -> None:
    result = simulate(SCENARIO)
    assert result.summary["simbatch"]["num_preemptions"] > 0
    run_pictures.write_timeline(tmp_path / "timeline.png", result)
    waiting = drawn[0].axes[1]
    assert texts(waiting.get_legend().get_texts()) == [
        f"of them preempted ({result.summary['simbatch']['num_preemptions']:,} preemptions)"
    ]
    everyone, *_, preempted = (filled.get_paths()[0].vertices[:, 1].max() for filled in waiting.collections)
    assert 0 < preempted <= everyone
    run_pictures.write_timeline(tmp_path / "timeline.png", simulate(SCENARIO.override({RATE: 0.1})))
    assert drawn[1].axes[1].get_legend() is None


def test_a_trace_s_picture_is_in_the_style_of_all(drawn: list[Figure], tmp_path: Path) -> None:
    source = open_workload(SCENARIO.workload, seed=0, folder=tmp_path)
    step_times.write(tmp_path / "trace.png", describe(source), "small")
    arrivals, prompts, outputs = drawn[0].axes
    assert arrivals.get_ylabel() == "requests/s"
    assert [axes.get_title(loc="left") for axes in (prompts, outputs)] == ["prompt lengths", "output lengths"]
    assert {axes.get_xlabel() for axes in (prompts, outputs)} == {"tokens"}
    assert not any(axes.spines["top"].get_visible() for axes in drawn[0].axes)
    assert any(text.startswith("median ") for text in texts(prompts.get_legend().get_texts()))
