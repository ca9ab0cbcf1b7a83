"""What pictures show: axes with units, scales, the lines that must be there; each was looked at too.

`--perfetto`: the trace-event format's rules, and the run's own figures in it.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from simbatch import Result, Scenario, UserError, compare, simulate, sweep
from simbatch.cli import main
from simbatch.sim.report import run_pictures, step_times, style
from simbatch.sim.report.compare import ReplicatedComparison
from simbatch.sim.report.compare_pictures import write_comparison, write_differences
from simbatch.sim.report.perfetto import rows_of
from simbatch.sim.search import sweep_plot
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning import tune
from simbatch.sim.tuning.goal import Goal, metric_of
from simbatch.sim.tuning.space import Space, axes_of
from simbatch.sim.tuning.tune_files import draw, picture_axes
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.traces.statistics import describe
from tests.made_scenarios import uniform

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


def test_whoever_has_none_of_it_or_as_much_is_drawn_too(drawn: list[Figure], tmp_path: Path) -> None:
    """A hollow point where all runs are equal, an arrow to the left where nothing is left."""
    seats = {"few": SCENARIO, "as few": SCENARIO, "one": SCENARIO.override({SEATS: 1})}
    compared = compare(SCENARIO, seats, replications=2, jobs=1)
    assert isinstance(compared, ReplicatedComparison)
    write_differences(tmp_path / "differences.png", "small", compared)
    axes = drawn[0].axes[0]
    colours = style.colours(compared.labels)
    markers = {
        label: [line for line in axes.lines if line.get_color() == colours[label]] for label in ("as few", "one")
    }
    assert any(line.get_markerfacecolor() == "white" for line in markers["as few"])
    row = [difference.other for difference in compared.differences[0]].index("one")
    gone = [ds[row] for ds in compared.differences if ds[row].ratio is not None and ds[row].ratio.high < 1 / 20]
    assert len([line for line in markers["one"] if line.get_marker() == "<"]) >= min(len(gone), 1)


def test_labels_stay_inside_and_off_the_limit(tmp_path: Path) -> None:
    with style.figure(tmp_path / "labels.png", 4, 3) as drawing:
        axes = drawing.add_subplot()
        axes.set(xlim=(0, 10), ylim=(0, 10))
        points = [(0.2, 0.1, "below"), (9.9, 9.9, "above"), (4.8, 5.0, "beside the limit"), (5.0, 0.1, "low")]
        style.label_apart(axes, points, uncrossed=[5.0])
        drawing.canvas.draw()
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
        inside, limit = axes.get_window_extent(), axes.transData.transform((5.0, 0))[0]
    assert {"below", "above", "beside the limit"} <= boxes.keys()
    for name, box in boxes.items():
        assert inside.y0 <= box.y0 + 3, name
        assert box.y1 <= inside.y1 + 3, name
        assert not box.x0 < limit < box.x1, name


def test_candidates_that_run_alike_are_both_seen(drawn: list[Figure], tmp_path: Path) -> None:
    """Pixels of either colour, where one line lies on the other all the way."""
    result = simulate(SCENARIO)
    write_comparison(tmp_path / "compare.png", {"one": result, "other": result})
    _, queue, batch, *distributions = drawn[0].axes[:6]
    canvas = FigureCanvasAgg(drawn[0])
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3]
    for axes in (queue, batch, *distributions):
        left, bottom, right, top = (round(edge) for edge in axes.get_window_extent().extents)
        inside = pixels[bottom:top, left:right]
        for colour in style.colours(["one", "other"]).values():
            near = np.abs(inside - 255 * np.array(to_rgb(colour))).max(axis=2) < 40
            assert near.sum() > 100, (axes.get_title(loc="left"), colour)


def test_a_timeline_shows_who_was_preempted(drawn: list[Figure], tmp_path: Path) -> None:
    result = simulate(SCENARIO)
    assert result.summary["simbatch"]["num_preemptions"] > 0
    run_pictures.write_timeline(tmp_path / "timeline.png", result)
    waiting = drawn[0].axes[1]
    num_preemptions = result.summary["simbatch"]["num_preemptions"]
    assert texts(waiting.get_legend().get_texts()) == [f"of them preempted ({num_preemptions:,} preemptions)"]
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


NUM_REQUESTS = 60
TIMELINE_SCENARIO: dict[str, Any] = {
    "profile": "h100-llama-3.1-8b-bf16-measured",
    "engine": {"num_gpu_blocks_override": 600, "max_model_len": 4096, "max_num_seqs": 32},
    "workload": {"num_prompts": NUM_REQUESTS, "request_rate": 40, "prompt_len": uniform(20, 900)}
    | {"output_len": uniform(1, 120)},
    "cluster": {"replicas": 2, "router": {"name": "least_requests"}},
}


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(Scenario.from_dict(TIMELINE_SCENARIO), steps=True)


@pytest.fixture(scope="module")
def events(result: Result, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = result.write_perfetto(tmp_path_factory.mktemp("trace") / "run.json.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return found


def test_every_event_is_one_of_the_format(events: list[dict[str, Any]]) -> None:
    """Complete events, counters and metadata, each with the keys that the format asks for."""
    for event in events:
        assert event["ph"] in {"X", "C", "M"}
        assert event["pid"] > 0
        if event["ph"] == "M":
            assert event["name"] in {"process_name", "thread_name"}
            assert event["args"]["name"]
        else:
            assert event["ts"] >= 0
            assert isinstance(event["ts"], int)
        if event["ph"] == "X":
            assert event["dur"] > 0
            assert isinstance(event["dur"], int)
            assert event["tid"] > 4  # processes: a viewer takes the thread of a process's number for its main one
        if event["ph"] == "C":
            assert set(event["args"]) in ({"running", "waiting"}, {"%"})


def test_slices_of_a_thread_follow_or_hold_one_another(events: list[dict[str, Any]]) -> None:
    """The format's rule for complete events of one thread: Perfetto drops a slice that crosses another by 1 ns."""
    threads = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append((event["ts"], -(event["ts"] + event["dur"])))
    for slices in threads.values():
        around: list[int] = []
        for begin, negative_end in sorted(slices):
            while around and around[-1] <= begin:
                around.pop()
            assert not around or -negative_end <= around[-1]
            around.append(-negative_end)


def test_it_says_what_the_run_says(result: Result, events: list[dict[str, Any]]) -> None:
    steps = [event for event in events if event.get("tid") == 6 and "step" in event.get("args", {})]
    assert len(steps) == result.record.num_steps
    assert {event["name"] for event in steps} == {"prefill", "mixed", "decode"}
    requests = [event for event in events if "num_prompt_tokens" in event.get("args", {})]
    assert len(requests) == NUM_REQUESTS
    tokens = sum(event["args"]["num_output_tokens"] for event in requests)
    assert tokens == result.summary["total_output_tokens"]
    first, *_ = sorted(requests, key=lambda event: event["ts"])
    assert first["ts"] == pytest.approx(1e6 * min(result.requests["arrival_s"]), abs=1)
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == {
        *("replica 0", "replica 1"),
        *("requests of replica 0", "requests of replica 1"),
    }
    used = [event["args"]["%"] for event in events if event["name"].startswith("KV")]
    assert min(used) == 0 < max(used) <= 100


def test_there_are_as_few_rows_as_intervals_that_meet() -> None:
    assert list(rows_of([(0, 5), (1, 3), (3, 4), (4, 9), (5, 6)])) == [1, 2, 2, 2, 1]


def test_the_command_writes_it(tmp_path: Path) -> None:
    target = tmp_path / "trace.json"
    scenario = tmp_path / "small.yaml"
    scenario.write_text(json.dumps({**TIMELINE_SCENARIO, "cluster": {"replicas": 1}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="0"):
        main(["run", str(scenario), "-o", str(tmp_path / "out"), "--perfetto", str(target), "--quiet"])
    assert json.loads(target.read_text(encoding="utf-8"))["displayTimeUnit"] == "ms"
    assert (tmp_path / "out" / "steps.parquet").exists()


def test_a_file_that_cannot_be_there_is_refused(result: Result, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        result.write_perfetto(tmp_path / "missing" / "trace.json")
