"""The folder of a result: every file read back, replaced atomically, nothing stale left."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from simbatch import Scenario, simulate
from simbatch.sim import is_compiled
from simbatch.sim.errors import UserError
from simbatch.sim.metrics.columns import SloLimits
from simbatch.sim.report.result import Result
from simbatch.sim.results import files
from simbatch.sim.results.files import write_requests
from tests.results_records import MS, REFUSED, REJECTED, UNFINISHED, Step, Toy, back_to_back, build, facts

NAMES = {"summary.json", "requests.parquet", "scenario.yaml", "run.json", "latency.png", "timeline.png"}


def record(**options):
    toys = [
        Toy(0, [0, 1, 2], 10, priority=1, num_cached_tokens=4),
        Toy(5 * MS, [], 9000, status=REJECTED),
        Toy(6 * MS, [1, 2], status=UNFINISHED),
    ]
    return build(toys, back_to_back([10 * MS, 20 * MS, 30 * MS]), **options)


def result(**options):
    known = facts(
        scenario={"profile": "inline", "seed": 7, "workload": {"num_prompts": np.int64(3)}}, slo=SloLimits(ttft_ms=50.0)
    )
    return Result(record(**options), known, wall_s=1.5)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_all_files_are_written_and_named(tmp_path):
    folder = tmp_path / "results" / "toy"
    written = result().save(folder)
    assert {path.name for path in written} == NAMES
    assert names(folder) == NAMES


def test_the_summary_reads_back_and_the_same_run_gives_the_same_bytes(tmp_path):
    first, second = result(), result()
    first.save(tmp_path / "a")
    second.save(str(tmp_path / "b"))
    text = (tmp_path / "a" / "summary.json").read_bytes()
    assert text == (tmp_path / "b" / "summary.json").read_bytes()
    assert json.loads(text) == first.summary
    assert list(json.loads(text))[-1] == "simbatch"


def test_requests_have_the_columns_and_types_that_others_rely_on(tmp_path):
    result().save(tmp_path)
    table = pq.read_table(tmp_path / "requests.parquet")
    kinds = {name: pa.int64() for name in table.column_names}
    kinds |= dict.fromkeys(("request_id", "status", "reason"), pa.string())
    kinds |= dict.fromkeys(("arrival_s", "scheduled_s", "first_token_s", "finish_s"), pa.float64())
    kinds |= dict.fromkeys(("queued_s", "client_first_token_s", "client_finish_s"), pa.float64())
    assert table.column_names == [
        *("request_id", "arrival_s", "scheduled_s", "first_token_s", "finish_s"),
        *("num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "num_preemptions", "priority"),
        *("status", "reason", "replica", "queued_s", "client_first_token_s", "client_finish_s"),
    ]
    assert [(field.name, field.type) for field in table.schema] == list(kinds.items())
    assert table.to_pylist() == [
        {
            "request_id": "0",
            "arrival_s": 0.0,
            "scheduled_s": 0.0,
            "first_token_s": 0.01,
            "finish_s": 0.06,
            "num_prompt_tokens": 10,
            "num_output_tokens": 3,
            "num_cached_tokens": 4,
            "num_preemptions": 0,
            "priority": 1,
            "status": "finished",
            "reason": None,
            "replica": 0,
            "queued_s": 0.0,
            "client_first_token_s": 0.01,
            "client_finish_s": 0.06,
        },
        table.to_pylist()[1]
        | {"scheduled_s": None, "first_token_s": None, "finish_s": None, "status": "rejected", "queued_s": None}
        | {"client_first_token_s": None, "client_finish_s": None, "reason": "prompt of 9000 tokens"},
        table.to_pylist()[2]
        | {"request_id": "2", "first_token_s": 0.03, "finish_s": None, "status": "unfinished", "queued_s": 0.006}
        | {"client_first_token_s": 0.03, "client_finish_s": None, "reason": None},
    ]


def test_host_and_front_end_have_columns_of_their_own(tmp_path):
    """Taken in at 2 ms; tokens exist 4 ms after the device's ends, leave 1 ms later, and take 3 ms on the network."""
    steps = [Step(k * 20 * MS, 10 * MS, k * 20 * MS + 14 * MS, k * 20 * MS + 15 * MS) for k in range(2)]
    toys = [Toy(MS, [0, 1], queued_ps=2 * MS), Toy(MS, [], status=REFUSED)]
    Result(build(toys, steps, client_overhead_ps=3 * MS, keep_steps=True), facts()).save(tmp_path)
    served, refused = pq.read_table(tmp_path / "requests.parquet").to_pylist()
    assert (served["queued_s"], served["first_token_s"], served["finish_s"]) == (0.002, 0.014, 0.034)
    assert (served["client_first_token_s"], served["client_finish_s"]) == (0.018, 0.038)
    assert (refused["status"], refused["reason"]) == ("refused", "max_num_queued_reqs: 4 in the server")
    assert refused["queued_s"] is refused["client_finish_s"] is None
    step = pq.read_table(tmp_path / "steps.parquet").to_pylist()[1]
    assert (step["start_s"], step["end_s"], step["updated_s"]) == (0.02, 0.03, 0.034)
    assert step["schedule_s"] is step["launched_s"] is None


def test_steps_are_written_when_kept_and_removed_when_not(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STEPS_PER_ROW_GROUP", 2)
    result(keep_steps=True).save(tmp_path)
    assert names(tmp_path) == NAMES | {"steps.parquet"}
    rows = pq.read_table(tmp_path / "steps.parquet").to_pylist()
    assert len(rows) == 3
    assert rows[1] == {
        "replica": 0,
        "step": 1,
        "schedule_s": None,
        "launched_s": None,
        "start_s": 0.01,
        "end_s": 0.03,
        "updated_s": None,
        "scheduled": [
            {"request_id": "0", "num_tokens": 1, "num_computed_tokens": 10},
            {"request_id": "2", "num_tokens": 1, "num_computed_tokens": 10},
        ],
        "preempted": [],
        "finished": [],
        "free_blocks": 80,
        "num_running": 2,
        "num_waiting": 0,
    }
    assert rows[2]["finished"] == ["0"]
    (tmp_path / "notes.txt").write_text("the user's own")
    result().save(tmp_path)
    assert names(tmp_path) == NAMES | {"notes.txt"}


def test_steps_of_a_run_without_any_keep_their_columns(tmp_path):
    Result(build([], [], keep_steps=True), facts()).save(tmp_path)
    schema = pq.read_schema(tmp_path / "steps.parquet")
    assert str(schema.field("scheduled").type).count("int64") == 2
    assert schema.field("preempted").type == pa.list_(pa.string())


def test_the_resolved_scenario_and_the_facts_of_the_run(tmp_path):
    result().save(tmp_path)
    scenario = yaml.safe_load((tmp_path / "scenario.yaml").read_text())
    assert scenario == {"profile": "inline", "seed": 7, "workload": {"num_prompts": 3}}
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["wall_s"], run["event_loop_cpu_s"], run["steps"]) == (1.5, 0.25, 3)
    assert run["compiled"] is is_compiled()
    assert run["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize(("name", "size"), [("latency.png", (1155, 726)), ("timeline.png", (1210, 814))])
def test_pictures_decode_with_their_size(tmp_path, name, size):
    result().save(tmp_path)
    with Image.open(tmp_path / name) as image:
        image.load()
        assert image.size == size
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_a_failure_leaves_the_earlier_result_and_no_debris(tmp_path, monkeypatch):
    result().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_requests", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device; choose another folder"):
        result(keep_steps=True).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_place_of_the_folder_is_the_users_to_mend(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken: the results cannot be written"):
        result().save(tmp_path / "taken")


def test_columns_in_seconds_and_the_latencies():
    requests = result(client_overhead_ps=MS).requests
    assert len(requests) == 3
    assert requests["request_id"].tolist() == ["0", "1", "2"]
    assert requests["status"].tolist() == ["finished", "rejected", "unfinished"]
    np.testing.assert_array_equal(requests["finish_s"], [0.06, np.nan, np.nan])
    np.testing.assert_array_equal(requests["ttft_s"], [0.011, np.nan, np.nan])
    np.testing.assert_array_equal(requests["e2el_s"], [0.061, np.nan, np.nan])
    np.testing.assert_array_equal(requests["tpot_s"], [0.025, np.nan, np.nan])
    with pytest.raises(KeyError, match="no column 'ttft_ms'; there are request_id, arrival_s"):
        requests["ttft_ms"]


def test_pandas_is_asked_for_only_then_and_missed_clearly(monkeypatch):
    frame = result().requests.to_pandas()
    assert frame.columns.tolist()[-3:] == ["ttft_s", "tpot_s", "e2el_s"]
    assert frame["finish_s"].isna().tolist() == [False, True, True]
    imported = builtins.__import__

    def without_pandas(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ImportError, match="needs pandas, which is not installed: pip install pandas"):
        result().requests.to_pandas()


def test_a_run_s_own_requests_play_the_same_again(tmp_path: Path) -> None:
    """Sub-requests beside each other, pauses, users, shared system prompts, and memory that is too short for them."""
    profile = {
        "num_gpu_blocks": 300,
        "max_model_len": 4000,
        "step_time": {"base_s": 0.01, "per_prefill_token_s": 1e-5, "per_decode_seq_s": 0, "per_context_token_s": 0},
    }
    short = {"distribution": "uniform", "min": 20, "max": 300}
    drawn = {
        **{"num_sessions": 40, "concurrency": 12, "turns": {"distribution": "uniform", "min": 1, "max": 5}},
        **{"new_tokens": short, "output_len": short, "system_prompt_tokens": 64, "num_system_prompts": 3},
        **{"think_time_s": {"distribution": "exponential", "mean": 2}, "max_context": 3900},
        "branch": {"share": 0.4, "width": {"distribution": "uniform", "min": 2, "max": 3}},
    }
    scenario = {"profile": profile, "engine": {"max_num_seqs": 64}, "workload": {"sessions": drawn}}
    first = simulate(Scenario.from_dict(scenario))
    write_requests(tmp_path / "requests.parquet", first.record)
    again = simulate(
        Scenario.from_dict(scenario | {"workload": {"trace": {"path": str(tmp_path / "requests.parquet")}}})
    )
    assert first.summary["simbatch"]["num_preemptions"] > 0
    for name in first.requests:
        one, other = first.requests[name].tolist(), again.requests[name].tolist()
        if name == "system_prompt":  # labels of the same thing
            other = [dict(zip(other, one, strict=True))[label] for label in other]
        assert str(one) == str(other), name
    told = first.requests["parent"].tolist()
    assert max(map(len, told)) > 2
    assert (first.requests["delay"] > 2).any()
