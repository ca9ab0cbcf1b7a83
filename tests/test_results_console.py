"""What a run shows: the console's block, its warnings, and the pictures."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from simbatch.sim.cost.uncertainty import NO_HOST_TIMES
from simbatch.sim.metrics.columns import SloLimits
from simbatch.sim.report import run_pictures
from simbatch.sim.report.result import Result
from simbatch.sim.report.style import duration_text
from simbatch.sim.text import number, percent, table
from tests.results_records import MS, REJECTED, UNFINISHED, S, Toy, back_to_back, build, facts, ours

BLOCK = """\
============ Serving Benchmark Result ============
Successful requests:                     2
Failed requests:                         0
Maximum request concurrency:             8
Request rate configured (RPS):           3.00
Benchmark duration (s):                  0.34
Total input tokens:                      40
Total generated tokens:                  6
Request throughput (req/s):              5.88
Request goodput (req/s):                 2.94
Output token throughput (tok/s):         17.65
Peak output token throughput (tok/s):    6.00
Peak concurrent requests:                2.00
Total token throughput (tok/s):          135.29
---------------Time to First Token----------------
Mean TTFT (ms):                          175.00
Median TTFT (ms):                        175.00
P90 TTFT (ms):                           195.00
P95 TTFT (ms):                           197.50
P99 TTFT (ms):                           199.50
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          35.00
Median TPOT (ms):                        35.00
P90 TPOT (ms):                           43.00
P95 TPOT (ms):                           44.00
P99 TPOT (ms):                           44.80
---------------Inter-token Latency----------------
Mean ITL (ms):                           35.00
Median ITL (ms):                         35.00
P90 ITL (ms):                            47.00
P95 ITL (ms):                            48.50
P99 ITL (ms):                            49.70
----------------End-to-end Latency----------------
Mean E2EL (ms):                          245.00
Median E2EL (ms):                        245.00
P90 E2EL (ms):                           249.00
P95 E2EL (ms):                           249.50
P99 E2EL (ms):                           249.90
=================================================="""


def result(**changes):
    steps = back_to_back([100 * MS, 20 * MS, 30 * MS, 40 * MS, 50 * MS], start_ps=100 * MS)
    record = build([Toy(0, [0, 1, 2], 10), Toy(100 * MS, [2, 3, 4], 30, priority=1)], steps)
    known = {
        "slo": SloLimits(ttft_ms=150, tpot_ms=45),
        "scenario": {"workload": {"request_rate": 3, "max_concurrency": 8}},
        "policy": "adaptive",
        "policy_params": {"target_tpot_ms": 50, "growth": "multiplicative"},
        "engine": {"max_num_seqs": 64, "block_size": 16, "watermark": 0.0, "max_num_active_seqs": None},
        "engine_defaults": ("block_size", "watermark", "max_num_active_seqs"),
        "profile": "rtx4090-llama-3.1-8b-bf16",
        "profile_error": "decode 1.9 %, mixed 4.8 %",
        "share_in_range": 0.9999,
        "seed": 7,
    }
    return Result(record, facts(**{**known, **changes}))


def test_the_block_is_that_of_vllm():
    lines = result().text().splitlines()[5:]
    assert [line.rstrip() for line in lines[: len(BLOCK.splitlines())]] == BLOCK.splitlines()
    assert lines[1] == "{:<40} {:<10}".format("Successful requests:", 2)
    assert lines[5] == "{:<40} {:<10.2f}".format("Benchmark duration (s):", 0.34)


def test_the_first_four_lines_are_the_answer():
    assert result(profile_source="measured").text().splitlines()[:5] == [
        "SLO: 50.00 % of 2 requests keep it; TTFT breaks it most (50.00 % are within 150 ms).",
        "What binds: nothing but the time that steps take.",
        "Load: the queue does not keep growing (0.65 wait on average); room: simbatch tune --capacity.",
        "Trust: rtx4090-llama-3.1-8b-bf16 (step times off by decode 1.9 %, mixed 4.8 %).",
        "",
    ]
    far = result(profile_source="measured", share_in_range=0.957).text()
    assert "mixed 4.8 %); 4.30 % of steps outside what it measured." in " ".join(far.split())
    short, long = result(engine={"max_num_seqs": 2}).text(), result(profile_is_estimate=True, slo=SloLimits()).text()
    assert "What binds: max_num_seqs (all 2 were running)." in short
    assert "no claim" not in short
    assert long.startswith("SLO: none is set; P99 TTFT 200 ms, TPOT 45 ms, 17.65 output tok/s.")
    assert "Trust: rtx4090-llama-3.1-8b-bf16 is an estimate, which nobody measured." in long


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"profile": "inline", "profile_error": None, "share_in_range": None}, "step times are those of the scenario."),
        ({"profile": "own", "profile_error": None, "share_in_range": None}, "own states no error."),
        (
            {"profile": "mine", "profile_error": "fitted from the streams of 2 results (900 requests); not told: much"},
            "mine (fitted from the streams of 2 results).",
        ),
    ],
)
def test_trust_of_profiles_that_name_no_source(known, said):
    assert f"\nTrust: {said}\n" in result(**known).text()


def test_what_follows_says_slo_classes_engine_and_setting():
    text = re.sub(r" +\n", "\n", result().text(verbose=True))
    assert "TTFT <= 150 ms:                          50.00 %\n" in text
    assert "All of them:                             50.00 %\n" in text
    assert re.search(r"^high +1 +200\.0 +200\.0 +25\.0 +25\.0 +250\.0 +250\.0 +100\.0 +0\.00 %$", text, re.MULTILINE)
    assert re.search(r"^normal +1 +150\.0 ", text, re.MULTILINE)
    assert "Batch size, mean / max:                  1.20 / 2\n" in text
    assert "Device busy" not in text  # nearly 100 % long before the capacity: vLLM's steps are never empty
    assert "Policy: adaptive target_tpot_ms 50, growth multiplicative\n" in text
    assert "Profile: rtx4090-llama-3.1-8b-bf16; error: decode 1.9 %, mixed 4.8 %\n" in text
    assert "Steps inside the profile's measured range: 99.99 %\n" in text
    assert "Engine, as written: max_num_seqs 64\n" in text
    assert "Engine, resolved: block_size 16, watermark 0, max_num_active_seqs none\n" in text
    assert text.endswith("Steady state: no claim (too short: 0 requests after warm-up, 200 are needed)")


def test_numbers_are_readable():
    assert not re.search(r"\d\.\d{5}", result().text())


def test_lines_stay_narrow():
    engine = {f"a_long_setting_number_{i}": i for i in range(30)}
    assert max(map(len, result(engine=engine).text().splitlines())) <= 100


def test_warnings_come_last_and_reasons_are_named():
    record = build([Toy(0, [0]), Toy(0, [], 9000, status=REJECTED)], back_to_back([MS]))
    text = Result(record, facts()).text()
    assert text.endswith("WARNING: 1 of 2 requests were rejected: `rejected_reasons` says why.")
    assert "Rejected 1: prompt of 9000 tokens\n" in text
    assert "Mean TPOT (ms):                          -" in text


def test_every_warning_has_its_reason():
    toys = [Toy(0, [0]), Toy(0, [], 9, status=REJECTED), Toy(0, [0, 1], status=UNFINISHED)]
    record = build(toys, back_to_back([MS, MS]))
    block = ours(record, share_in_range=0.953, profile_is_estimate=True, profile_caveats=(NO_HOST_TIMES,))
    assert block["warnings"] == [
        "1 of 3 requests never finished: the engine was stuck.",
        "1 of 3 requests were rejected: `rejected_reasons` says why.",
        "4.7 % of the steps are outside what the profile measured: their times are extrapolated.",
        "The profile is an estimate: nobody measured this model on this GPU.",
        NO_HOST_TIMES,
    ]
    assert ours(build([Toy(0, [0])], back_to_back([MS])), share_in_range=0.995)["warnings"] == []


def test_many_preemptions_are_warned_of():
    toys, steps = [Toy(0, [i]) for i in range(500)], back_to_back([MS] * 500)
    full = {"num_recomputed_tokens": 1000, "num_gpu_blocks": 2}
    few = [build(toys, steps, num_preemptions=299, **full), build(toys * 7, steps, num_preemptions=349, **full)]
    assert [ours(record)["warnings"] for record in few] == [[], []]
    assert ours(build(toys, steps, num_preemptions=1500, **full))["warnings"] == [
        "Requests lost their KV blocks 1,500 times, 3 times each on average, and 20.0 % of all tokens were computed "
        "again. Lower engine.max_num_seqs, or give it more KV blocks."
    ]
    by_choice = build(toys, steps, num_preemptions=300, num_recomputed_tokens=50)
    assert ours(by_choice)["warnings"] == [
        "Requests lost their KV blocks 300 times, 0.6 times each on average, and 1.0 % of all tokens were computed "
        "again. It is the policy that preempts them."
    ]


def test_a_rate_that_no_front_end_serves_is_warned_of():
    toys = [Toy(0, [i]) for i in range(200)]
    fast, slow = back_to_back([MS // 5] * 200), back_to_back([2 * MS] * 200)
    [warning] = ours(build(toys, fast), has_free_host=True)["warnings"]
    assert warning.startswith("5,000 requests a second were served, and this profile has no times of the host (HTTP, ")
    assert "one front end serves some 1,000" in warning
    assert ours(build(toys, slow), has_free_host=True)["warnings"] == []
    assert ours(build(toys, fast))["warnings"] == []
    assert ours(build(toys[:99], fast), has_free_host=True)["warnings"] == []  # over before a host falls behind


@pytest.mark.parametrize(
    ("share", "text"), [(None, "-"), (0.0, "0.00 %"), (0.5, "50.00 %"), (0.999999, "99.99 %"), (1.0, "100.00 %")]
)
def test_a_share_below_all_is_never_shown_as_all(share, text):
    assert percent(share) == text


def test_tables_align():
    assert table(["", "a"], [["long name", number(1234.5)], ["b", number(None)]]) == [
        "                  a",
        "long name  1,234.50",
        "b                 -",
    ]


def test_a_notebook_shows_a_small_table():
    html = result(scenario_name="<b>")._repr_html_()
    assert html.startswith("<table>")
    assert "&lt;b&gt;, adaptive: 2 of 2 requests" in html
    assert "<td>175.0</td>" in html
    assert "<b>" not in html


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
