"""Measuring without an engine: durations, the batch table and its knee, when to stop, what is kept."""

import json
import math
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from simbatch.cli.profile import left_text
from simbatch.profiler.profile import Files
from simbatch.profiler.profile.batches import BatchShape, Lived, batch_sizes, knee, row_of
from simbatch.profiler.profile.measure import Budget, check_not_begun, open_samples
from simbatch.profiler.profile.predicted import memory_table, planned_memory, utilisation
from simbatch.profiler.profile.sections import joined_ways, way_of
from simbatch.profiler.records.lines import STEP_TIMES, RecordedRequest, RecordedStep, durations_s, entries_of
from simbatch.profiler.records.samples import Admission, BatchEntry, StepSample, read_samples
from simbatch.profiler.server.client import Flight
from simbatch.profiler.server.start import REQUIREMENT, TESTED, VERSIONS, EngineOptions, failed_start
from simbatch.serving.engine_facts import quantisation_name
from simbatch.sim.errors import UserError
from tests.made_samples import ENGINE

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "tests" / "vllm" / "models"


def facts(**changes):
    blocks = {"block_size": 16, "num_gpu_blocks": 101, "kv_bytes_per_token": 1024, "kv_cache_bytes": 101 * 16 * 1024}
    return ENGINE.model_copy(update={"total_bytes": 2**30, "max_model_len": 4096, **blocks, **changes})


def recorded(schedule_s, updated_s, num_decodes=1, prefills=(), **more):
    """A step; what is not said is NaN or nothing."""
    times = {**dict.fromkeys(STEP_TIMES.values(), math.nan), "schedule_s": schedule_s, "updated_s": updated_s}
    counts = {"context_tokens": 300 * num_decodes, "num_running": num_decodes, "num_waiting": 0, "num_preempted": 0}
    return RecordedStep(**{**times, **counts, "num_decodes": num_decodes, "prefills": tuple(prefills), **more})


def took_s(*lines):
    return [pytest.approx(took) for _, took in durations_s(lines)]


def test_a_step_without_a_device_s_times_lasts_from_update_to_update():
    alone = recorded(1.0, 1.5, 0, [(0, 10)])
    following, later = recorded(1.6, 2.0), recorded(7.0, 7.25, 0, [(0, 10)])
    assert took_s(alone, following, later) == [0.5, 0.5, 0.25]  # the last one came to an idle engine
    taken_in = RecordedRequest("a", 10, 1.52, 1.58, 1.5)
    assert took_s(alone, taken_in, following) == [0.5, 0.44]


def test_a_step_with_a_device_s_times_lasts_from_where_the_one_before_ended():
    steps = [recorded(1.0, 2.1, start_s=1.0, end_s=2.0), recorded(1.1, 2.6, start_s=1.2, end_s=2.5)]
    assert took_s(*steps, recorded(5.0, 6.0, start_s=5.5, end_s=5.7)) == [1.0, 0.5, 0.2]


def test_decodes_share_their_context():
    step = recorded(0.0, 1.0, 3, [(64, 36)], context_tokens=100)
    assert [entry.num_computed_tokens for entry in entries_of(step)] == [34, 33, 33, 64]
    assert [entry.is_decode for entry in entries_of(step)] == [True] * 3 + [False]


def test_the_way_of_a_batch_by_hand():
    def flight(name, *chunk_s):
        made = Flight(name, 20, 3)
        made.answer.sent_s = 1.0
        made.answer.chunk_s = list(chunk_s)
        return made

    # two prefills in a step, then two decodes with both; updates at 2, 3 and 4
    steps = [recorded(1.5, 2.0, 0, [(0, 20), (0, 20)]), recorded(2.0, 3.0, 2), recorded(3.0, 4.0, 2)]
    flights = [flight("sb1-1", 2.01, 3.01, 4.01), flight("sb1-11", 2.03, 3.03, 4.03)]
    requests = [RecordedRequest(f"cmpl-{each.name}-0-abc", 20, 1.3, 1.4, 1.2) for each in flights]
    way = way_of(flights, steps, requests, 20)
    assert (way.in_s, way.out_s) == pytest.approx((0.2, 0.01))
    assert way.chunk_s is None  # two of a step say little
    twice = [*flights, flight("sb1-2", 2.05, 3.05, 4.05), flight("sb1-3", 2.07, 3.07, 4.07)]
    more = [recorded(1.5, 2.0, 0, [(0, 20)] * 4), recorded(2.0, 3.0, 4), recorded(3.0, 4.0, 4)]
    assert way_of(twice, more, requests, 20).chunk_s == pytest.approx(0.02)
    assert way_of(flights, more, requests, 20) is None  # chunks were merged
    joined = joined_ways([way, way_of(twice, more, requests, 20)])
    assert joined == pytest.approx({"network_s": 0.21, "per_chunk_s": 0.02})
    assert joined_ways([]) == {}


def decode_step(duration_s, num_decodes, free_blocks):
    return recorded(0.0, duration_s, num_decodes, start_s=0.0, end_s=duration_s, num_free_blocks=free_blocks)


def test_a_row_of_the_batch_table_by_hand():
    lives = [Lived(0.0, [1.0, 1.5, 2.0]), Lived(0.5, [2.0, 2.5, 3.0])]
    begun_s, steps = 0.0, []
    for duration_s, num_decodes, free in ((0.2, 1, 80), (0.4, 2, 60), (0.5, 2, 60), (9.0, 2, 60)):
        steps.append(decode_step(duration_s, num_decodes, free)._replace(start_s=begun_s, end_s=begun_s + duration_s))
        begun_s += duration_s
    row = row_of(facts(), BatchShape(20, 3), lives, steps)
    assert row["ttft_ms"] == pytest.approx(1250)  # 1.0 and 1.5 s
    assert row["tpot_ms"] == pytest.approx(500)
    assert row["e2el_ms"] == pytest.approx(2250)
    assert row["output_throughput"] == pytest.approx(6 / 3.0)
    assert row["step_ms"] == pytest.approx(500)  # the median of the steps with both; not elapsed time over batch size
    assert row["kv_blocks"] == 40
    assert row["kv_bytes_per_seq"] == 20 * 16 * 1024
    assert not row["kv_full"]


def test_a_batch_that_needs_more_blocks_than_there_are_is_kv_full():
    def row(batch_size):
        return row_of(facts(), BatchShape(150, 3), [Lived(0.0, [1.0, 2.0, 3.0])] * batch_size, [decode_step(0.1, 1, 5)])

    assert not row(10)["kv_full"]  # 10 blocks each, 100 are usable
    assert row(11)["kv_full"]


def test_batch_sizes_double_and_end_at_the_highest():
    assert batch_sizes(1) == [1]
    assert batch_sizes(32) == [1, 2, 4, 8, 16, 32]
    assert batch_sizes(100) == [1, 2, 4, 8, 16, 32, 64, 100]


def test_the_table_fits_short_models_and_little_memory():
    assert BatchShape.of(facts()) == (256, 32)
    assert BatchShape.of(facts(max_model_len=64)) == (48, 16)
    assert sum(BatchShape.of(facts(num_gpu_blocks=3))) <= 32


def rows(*points, full_from=10**9):
    return [
        {"batch_size": 2**i, "step_ms": step, "output_throughput": rate, "kv_full": i >= full_from}
        for i, (step, rate) in enumerate(points)
    ]


def test_the_knee_is_where_throughput_stops_to_come_for_free():
    bend = rows((10, 100), (10, 200), (11, 370), (20, 400), (40, 410))
    assert knee(bend) == 4
    assert knee(rows((10, 100), (20, 200), (30, 300))) is None  # a straight line
    assert knee(bend[:2]) is None
    assert knee(rows((10, 100), (10, 200), (11, 370), (20, 400), (40, 410), full_from=2)) is None


def test_a_budget_never_goes_below_zero():
    clock = SimpleNamespace(now_s=10.0)
    budget = Budget(60, lambda: clock.now_s)
    clock.now_s = 30.0
    assert (budget.elapsed_s, budget.left_s) == (20.0, 40.0)
    assert left_text(budget.left_s) == "at most 0:40 left"
    clock.now_s = 100.0
    assert budget.left_s == 0


def test_samples_are_on_disk_at_once_and_go_on_after_a_cut(tmp_path):
    path = tmp_path / "x.samples.jsonl"
    kept = open_samples(path, facts(), resume=False)
    step = StepSample(4, False, 0.01, (BatchEntry(0, 10, False),))
    kept.step(step)
    kept.admission(Admission(0.001, 10))
    kept.row({"batch_size": 1})
    assert read_samples(path).steps == [step]  # the file is not closed yet
    kept.writer.close()
    with path.open("a") as file:
        file.write('{"record": "step", "epis')  # killed here
    again = open_samples(path, facts(num_gpu_blocks=99), resume=True)  # vLLM's own figure varies
    again.step(step)
    again.writer.close()
    found = read_samples(path)
    assert len(found.steps) == 2
    assert found.batches == [{"batch_size": 1}]
    assert "resumed after 1 steps" in json.dumps(found.notes)


def test_samples_of_another_engine_are_refused(tmp_path):
    path = tmp_path / "x.samples.jsonl"
    open_samples(path, facts(), resume=False).writer.close()
    with pytest.raises(UserError, match=r"kv_cache_dtype 'bfloat16'.*'fp8'"):
        open_samples(path, facts(kv_cache_dtype="fp8"), resume=True)


def test_an_earlier_measurement_is_not_overwritten(tmp_path):
    path = Files(tmp_path / "mine.json").samples
    assert path.name == "mine.samples.jsonl"
    check_not_begun(path, resume=False)
    path.write_text("something")
    with pytest.raises(UserError, match="--resume"):
        check_not_begun(path, resume=False)
    check_not_begun(path, resume=True)


def test_quantisation_is_named_as_in_profiles():
    config = json.loads((MODELS / "tiny-llama-w8a8" / "config.json").read_text())
    assert quantisation_name(None, "bfloat16", {}) == "bf16"
    assert quantisation_name("compressed-tensors", "bfloat16", config) == "int8"
    assert quantisation_name("fp8", "bfloat16", {}) == "fp8"  # while loading
    unknown = {"quantization_config": {"quant_method": "quark"}}
    assert quantisation_name("quark", "bfloat16", unknown) == "quark"


def test_the_planner_s_figures_are_laid_beside_vllm_s():
    config = json.loads((MODELS / "tiny-llama" / "config.json").read_text())
    set_size = {"architecture": config, "block_size": 128, "kv_cache_memory_bytes": 2**30}
    planned, _ = planned_memory(facts(**set_size))
    # 2 x 4 layers x 2 KV heads x 64 x 2 bytes
    assert (planned["kv_bytes_per_token"], planned["num_gpu_blocks"]) == (2048, 4096)
    halved, _ = planned_memory(facts(**set_size, kv_cache_dtype="fp8"))
    assert (halved["kv_bytes_per_token"], halved["num_gpu_blocks"]) == (1024, 8192)
    on_gpu, _ = planned_memory(facts(architecture=config, gpu="rtx4090", total_bytes=24 * 2**30))
    assert on_gpu["num_gpu_blocks"] > 10_000
    assert on_gpu["activation_bytes"] > 0
    nothing, why = planned_memory(facts(architecture={"architectures": ["Other"]}))
    assert nothing == {}
    assert "Other" in why


def test_the_memory_table_says_what_is_left_of_vllm_s_share():
    parts = {"weights_bytes": 8 * 2**30, "activation_bytes": 2**30, "graphs_bytes": 2**29, "kv_cache_bytes": 10 * 2**30}
    on_gpu = facts(gpu="rtx4090", total_bytes=24 * 2**30, **parts)  # vLLM may take 0.9 of them, 21.6 GiB
    table = memory_table(on_gpu, {**parts, "kv_cache_bytes": 9 * 2**30})
    assert re.split(" {2,}", table[-1]) == ["left of vLLM's share", "2,150.4 MiB", "3,174.4 MiB", "-"]
    assert memory_table(facts(weights_bytes=1), parts)[-1].split()[-3] == "-"


def test_utilisation_is_a_share_of_the_datasheet_s_bandwidth():
    config = json.loads((MODELS / "tiny-llama" / "config.json").read_text())
    row = {"step_ms": 1.0, "step_batch": 4, "step_context": 300.0}
    shares, why = utilisation(facts(architecture=config, gpu="rtx4090"), [row])
    # 4 layers of 3.0 M weights and a head of 2.1 M, 2 bytes each, and 1,200 tokens of context, at 1,008 GB/s
    assert shares[0] == pytest.approx((4 * 3_014_656 * 2 + 4096 * 512 * 2 + 1200 * 2048) / 1008e9 / 1e-3, rel=0.02)
    assert why == ""
    assert utilisation(facts(), [row]) == ([None], "simbatch has no datasheet of a CPU")


def test_a_start_that_failed_says_what_to_lower(tmp_path):
    def failed(said, messages=""):
        return str(failed_start(f"did not start: {said}", EngineOptions("m"), tmp_path / "log", messages))

    assert "lower --gpu-memory-utilization" in failed("CUDA out of memory. Tried 2 GiB")
    assert "raise --gpu-memory-utilization" in failed("No available memory for the cache blocks.")
    elsewhere = failed("Engine core initialization failed", "worker: torch.OutOfMemoryError")
    assert "lower --gpu-memory-utilization" in elsewhere
    assert failed("?").endswith(f"vLLM's own messages are in {tmp_path / 'log'}")


def test_what_is_said_becomes_flags_of_vllm_serve():
    extra = {"enforce_eager": True, "cudagraph_capture_sizes": [1, 2], "additional_config": {"a": 1}}
    options = EngineOptions("m", max_num_seqs=4, enable_prefix_caching=False, extra=extra)
    words = ["m", "--max-num-seqs", "4", "--no-enable-prefix-caching", "--seed", "0", "--enforce-eager"]
    words += ["--cudagraph-capture-sizes", "1", "2", "--additional-config", '{"a": 1}']
    assert options.flags() == words
    assert "--enforce-eager" not in options.without("enforce_eager").flags()
    more = options.with_extra(dtype="float16", enforce_eager=False).extra
    assert more == {"dtype": "float16", **extra}  # what was given stays


def test_the_versions_of_vllm_are_one_set_everywhere():
    """The check, pip's extra, the Makefile's environment, and what the page says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    first, last = (int(version.split(".")[1]) for version in (VERSIONS[0], VERSIONS[-1]))
    assert tuple(f"0.{minor}" for minor in range(first, last + 1)) == VERSIONS
    assert f"vllm>=0.{first},<0.{last + 1}" == REQUIREMENT
    assert REQUIREMENT in project["project"]["optional-dependencies"]["profile"]
    assert f"VLLM_VERSION := {TESTED}\n" in (ROOT / "Makefile").read_text()
    assert f"pip install '{REQUIREMENT}'" in (ROOT / "docs" / "profiling.md").read_text()
