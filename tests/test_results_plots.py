"""Pictures: whatever the run, they are drawn, and a narrow burst is not lost in a long one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from simbatch.sim.metrics.facts import SloLimits
from simbatch.sim.report import run_pictures
from simbatch.sim.report.result import Result
from simbatch.sim.report.style import duration_text
from tests.results_records import MS, REJECTED, S, Toy, back_to_back, build, facts


def runs():
    steps = back_to_back([10 * MS + 50 * k for k in range(40)])
    yield "nothing", build([], [])
    yield "rejected", build([Toy(0, [], status=REJECTED)], [])
    yield "one token", build([Toy(0, [0])], steps[:1])
    yield "classes", build([Toy(i * MS, list(range(i, 30)), priority=i % 3) for i in range(12)], steps)
    yield "constant", build([Toy(0, list(range(20)))] * 3, back_to_back([MS] * 20))
    yield "long", build([Toy(0, [0]), Toy(90_000 * S, [1])], [*steps[:1], *back_to_back([MS], 90_000 * S)])


@pytest.mark.parametrize("slo", [SloLimits(), SloLimits(ttft_ms=0.001, tpot_ms=1e6, e2el_ms=50)], ids=["no slo", "slo"])
@pytest.mark.parametrize(("name", "record"), list(runs()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_run_can_be_drawn(tmp_path, name, record, slo):
    known = facts(slo=slo, scenario_name=f"{name} $x_1$ " + "long " * 40, policy_params={"batch_size": 4})
    result = Result(record, known)
    run_pictures.write_latency(tmp_path / "latency.png", result)
    run_pictures.write_timeline(tmp_path / "timeline.png", result)
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"


def test_a_burst_stands_out_of_a_long_run():
    """100 requests within a second, at noon of a day with one request a minute."""
    quiet = [Toy(60 * i * S, [i]) for i in range(1440)]
    burst = [Toy(43_200 * S + i * 9 * MS, [1440 + i]) for i in range(100)]
    steps = [back_to_back([MS], toy.arrival_ps)[0] for toy in quiet]
    record = build(quiet + burst, [*steps, *back_to_back([50 * MS] * 100, 43_201 * S)])
    edges, mean, peak = run_pictures.arrivals(record)
    assert peak.max() >= 100
    assert mean.max() < 2
    assert edges[peak.argmax()] <= 43_200 < edges[peak.argmax() + 1]
    edges, mean, peak = run_pictures.binned(run_pictures.curves.waiting(record), record)
    assert peak.max() == 100
    assert len(edges) <= run_pictures.NUM_BINS + 1


def test_every_arrival_is_on_the_timeline():
    record = build([Toy(i * 37 * MS, [i]) for i in range(50)], back_to_back([40 * MS] * 50))
    edges, mean, _ = run_pictures.arrivals(record)
    assert (mean * np.diff(edges)).sum() == pytest.approx(50)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.5312, "0.531 ms"), (271.6, "272 ms"), (999.9, "1 s"), (1025.7, "1.03 s"), (750_000, "12.5 min"), (None, "-")],
)
def test_durations_read_as_people_say_them(milliseconds, text):
    assert duration_text(milliseconds) == text
