"""The memory planner: weights, KV cache and blocks from a model's shapes and a GPU's memory.

How many requests a KV cache holds: against brute force, and against the simulated engine.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from simbatch import Scenario, simulate
from simbatch.profiler.model.memory_batch import RequestLengths, fit, held_blocks, lengths_of, runnable, whole_blocks
from simbatch.profiler.model.memory_plan import kv_bytes_per_token, num_blocks, plan_memory
from simbatch.profiler.model.memory_rows import plan_rows
from simbatch.profiler.model.reserves import COMPILED
from simbatch.profiler.model.weights import weights_of
from simbatch.sim.cost.gpus import GPUS
from simbatch.sim.errors import UserError
from simbatch.sim.workload.sessions import Lognormal
from simbatch.sim.workload.synthetic import length_draw
from tests import lengths as lengths_as
from tests.made_samples import llama, published

GPU = GPUS["rtx4090"]
RUN = Path(__file__).parents[2] / "shared" / "gpu" / "llmservingsim" / "rtx4090-llama-3.1-8b" / "run" / "meta.json"


@pytest.mark.parametrize(
    ("changes", "stored_as", "gpus", "heads", "element_bytes"),
    [
        ({}, "auto", 1, 8, 2),
        ({"num_key_value_heads": 32}, "auto", 1, 32, 2),
        ({}, "fp8", 1, 8, 1),
        ({}, "fp8_e5m2", 1, 8, 1),
        ({"torch_dtype": "float32"}, "auto", 1, 8, 2),  # published in 32 bits, loaded in 16
        ({}, "auto", 2, 4, 2),
        ({}, "auto", 8, 1, 2),
        ({}, "auto", 16, 1, 2),  # too few to share: repeated
    ],
)
def test_a_token_has_keys_and_values_of_each_head_in_each_layer(changes, stored_as, gpus, heads, element_bytes):
    assert kv_bytes_per_token(llama(**changes), stored_as, gpus) == 2 * 32 * heads * 128 * element_bytes


def test_the_published_models():
    assert kv_bytes_per_token(published("llama-3.1-70b-instruct")) == 327_680
    assert kv_bytes_per_token(published("qwen3-32b")) == 262_144
    assert kv_bytes_per_token(published("llama-2-7b-hf")) == 524_288


def test_a_model_published_in_32_bits_is_loaded_in_16():
    assert plan_memory(llama(torch_dtype="float32"), GPU).weights_bytes == 16_060_522_496


def test_only_linear_layers_are_quantised():
    bf16, awq, int8 = (weights_of(llama(), stored) for stored in ("bf16", "awq", "int8"))
    assert (awq.embeddings, awq.head, awq.others) == (bf16.embeddings, bf16.head, bf16.others)
    assert awq.layers / bf16.layers == pytest.approx(4.15625 / 16)  # 4 bits, and 20 for 128 of them
    assert bf16.layers // 2 < int8.layers < 0.51 * bf16.layers


def test_a_vocabulary_is_padded_and_norms_are_on_every_gpu():
    odd = llama(vocab_size=128_001)
    assert weights_of(odd, "bf16").head == 128_064 * 4096 * 2
    assert weights_of(odd, "bf16", 2).head == 64_032 * 4096 * 2
    assert weights_of(odd, "bf16", 2).others == weights_of(odd, "bf16").others
    assert weights_of(llama(tie_word_embeddings=True), "bf16").head == 0


@pytest.mark.parametrize("size", [3, 5, 64])
def test_gpus_that_cannot_share_the_heads(size):
    with pytest.raises(UserError) as caught:
        weights_of(llama(), "bf16", size)
    assert caught.value.problems[0].place == "--tensor-parallel-size"


def test_blocks_are_whole():
    assert num_blocks(2_097_152, 131_072, 16) == 1
    assert num_blocks(2_097_151, 131_072, 16) == 0
    assert num_blocks(-1, 131_072, 16) == 0


def test_a_plan_adds_up_and_names_every_formula():
    plan = plan_memory(llama(), GPU)
    memory = plan.memory()  # checks that the parts leave these blocks
    assert memory.num_gpu_blocks_from == "estimate"
    assert memory.weights_bytes == 16_060_522_496
    rows = {row.key: row for row in plan_rows(plan)}
    parts = ("weights", "activations", "first_compilation", "cuda_graphs", "rotary_table", "cuda_and_nccl")
    assert rows["usable_memory"].value - sum(rows[key].value for key in parts) == plan.kv_cache_bytes
    assert rows["kv_per_token"].formula == "2 x 32 layers x 8 KV heads x 128 x 2 bytes (bfloat16)"
    assert rows["weights"].is_exact
    assert all(row.formula for row in rows.values())
    estimated = [row for row in rows.values() if not row.is_exact]
    assert {row.key for row in estimated} >= {"activations", "cuda_graphs", "cuda_and_nccl", "kv_cache", "blocks"}
    assert all(row.low < row.value < row.high for row in estimated)


def test_smaller_weights_and_more_gpus_leave_more_blocks():
    def blocks(**more):
        return plan_memory(llama(), GPU, **more).num_gpu_blocks

    assert blocks(quantisation="awq") > blocks(quantisation="fp8") > blocks()
    assert blocks(tensor_parallel_size=2) > 2 * blocks()
    assert blocks(kv_cache_dtype="fp8") // 2 == blocks()
    assert blocks(gpu_memory_utilization=0.95) > blocks()
    assert blocks(block_size=32) == blocks() // 2
    # what the profile run at the start takes grows with both limits
    assert blocks(max_num_seqs=2048) < blocks(max_num_seqs=1024) < blocks()
    assert blocks(max_num_seqs=128) > blocks()  # fewer graphs
    assert blocks(enforce_eager=True) > blocks()
    assert blocks(max_num_batched_tokens=16_384) < blocks()


def test_the_peak_is_what_vllm_measured_on_an_h100():
    """vLLM 0.32: 864 MiB of activations for 8,192 tokens and 256 requests (gpu/h100-vllm-0.32/serve)."""
    plan = plan_memory(llama(), GPUS["h100"], max_num_seqs=256, max_num_batched_tokens=8192)
    assert plan.activation_bytes == 864 * 2**20
    assert plan.num_gpu_blocks == pytest.approx(28_588, rel=0.015)
    restarted = plan.layout.num_blocks(plan.kv_cache_bytes + plan.part(COMPILED))  # as this server was
    assert restarted == pytest.approx(28_588, rel=0.001)
    awq = plan_memory(llama(), GPUS["h100"], quantisation="awq", max_num_seqs=256, max_num_batched_tokens=8192)
    assert awq.num_gpu_blocks == pytest.approx(33_323, rel=0.015)


@pytest.mark.parametrize(
    ("version", "stored", "sets_aside"),
    [("0.22.1", "bf16", True), ("0.24.0", "bf16", False), ("0.23.0", "awq", True), ("0.28.0", "awq", False),
     ("0.29.0", "awq", True), ("0.19.0", "bf16", False)],
)  # fmt: skip
def test_the_new_runner_sets_no_graphs_aside_before_0_29(version, stored, sets_aside):
    assert (plan_memory(llama(), GPU, quantisation=stored, vllm_version=version).graphs_bytes > 0) == sets_aside


def test_a_first_start_compiles_and_an_eager_one_does_not():
    assert plan_memory(llama(), GPU).part(COMPILED) > 0
    assert plan_memory(llama(), GPU, enforce_eager=True).part(COMPILED) == 0
    assert plan_memory(llama(), GPU, vllm_version="0.7.3", max_model_len=8192).part(COMPILED) == 0
    # the older sampler's peak hides it
    assert plan_memory(llama(), GPU, vllm_version="0.19.0", max_num_seqs=256).part(COMPILED) == 0


def test_the_quantisation_is_the_checkpoints_unless_given():
    awq = llama(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128})
    assert plan_memory(awq, GPU).weights_bytes == plan_memory(llama(), GPU, quantisation="awq").weights_bytes
    assert plan_memory(awq, GPU, quantisation="bf16").weights_bytes == plan_memory(llama(), GPU).weights_bytes


def test_against_the_recorded_run_nothing_was_fitted():
    """vLLM 0.19 resolved 2,588 blocks: it kept nothing back for CUDA graphs, and more for its older sampler."""
    if not RUN.exists():
        pytest.skip("no recorded run beside the project")
    run = json.loads(RUN.read_text())
    gpu = replace(GPU, total_bytes=run["hardware"]["device_total_memory_bytes"])
    plan = plan_memory(
        llama(),
        gpu,
        max_num_seqs=run["engine_kwargs"]["max_num_seqs"],
        max_num_batched_tokens=run["engine_kwargs"]["max_num_batched_tokens"],
        gpu_memory_utilization=run["kv_cache"]["gpu_memory_utilization"],
        vllm_version="0.19.0",
    )
    assert plan.graphs_bytes == 0
    assert plan.num_gpu_blocks == pytest.approx(run["kv_cache"]["num_gpu_blocks"], rel=0.02)  # docs/memory.md
    assert plan.num_gpu_blocks_low < run["kv_cache"]["num_gpu_blocks"] < plan.num_gpu_blocks_high


PROMPT = {"distribution": "lognormal", "mean": 800, "cv": 1.0, "max": 4096}
OUTPUT = {"distribution": "lognormal", "mean": 200, "cv": 0.8, "max": 2048}


def drawn(number=50_000):
    pair = []
    for seed, length in enumerate((PROMPT, OUTPUT)):
        draw = length_draw(Lognormal.model_validate(length), folder=None, of="num_prompt_tokens")
        pair.append(draw(np.random.default_rng(seed), number))
    return RequestLengths(*pair, "drawn")


def simulated(seats, blocks, prompt=PROMPT, output=OUTPUT, num_prompts=6000, **how):
    """So many users who ask again at once: all seats are taken all the time."""
    data = {
        "profile": {"num_gpu_blocks": blocks, "step_time": {"base_s": 0.01}},
        "engine": {
            "max_num_seqs": seats,
            "max_num_batched_tokens": 8192,
            "enable_prefix_caching": False,
            "max_model_len": 8192 if blocks > 512 else 1024,
        },
        "workload": {
            "num_prompts": num_prompts,
            "arrival": {"process": "closed_loop", "max_concurrency": seats},
            "prompt_len": prompt,
            "output_len": output,
        },
    }
    return simulate(Scenario.from_dict(data), **how)


def test_blocks_of_one_request_step_by_step():
    one = RequestLengths(np.array([30]), np.array([5]), "")
    # 30, 31, 32, 33, 34 tokens in five steps
    assert held_blocks(one, whole_blocks(16)).tolist() == [0, 0, 3 / 5, 2 / 5]
    # a request of 100 steps is met twenty times as often as one of 5
    two = RequestLengths(np.array([16, 1600]), np.array([1, 99]), "")
    assert held_blocks(two, whole_blocks(16))[1] == 1 / 100


def test_the_convolution_is_that_of_the_definition():
    lengths = RequestLengths(np.array([3, 40, 7]), np.array([9, 20, 50]), "")
    held = held_blocks(lengths, whole_blocks(16))
    for usable in (3, 10, 25):
        found, sums = fit(lengths, usable, whole_blocks(16), risk=0.1), np.ones(1)
        shares = []
        for _ in range(30):
            sums = np.convolve(sums, held)
            shares.append(1 - sums[: usable + 1].sum())
        assert found.at_risk == sum(share <= 0.1 + 1e-12 for share in shares)
        assert found.risk == pytest.approx(shares[found.at_risk - 1] if found.at_risk else 0, abs=1e-9)
        assert found.risk_above == pytest.approx(shares[found.at_risk], abs=1e-9)


def test_fixed_lengths_fit_to_the_block():
    """One seat more than fits, and the engine preempts; the last output token takes no room."""
    lengths = lengths_of(100, 0, 61, 0)
    assert lengths.is_fixed
    found = fit(lengths, 200, whole_blocks(16))
    assert (found.longest_blocks, found.worst) == (10, 20)  # 100 + 61 - 1 tokens
    fits, too_many = (simulated(seats, 201, lengths_as(100), lengths_as(61), 200) for seats in (20, 21))
    assert fits.summary["simbatch"]["num_preemptions"] == 0
    assert fits.summary["simbatch"]["kv_cache"]["peak_use"] == 1
    assert too_many.summary["simbatch"]["num_preemptions"] > 0


def test_the_risk_is_what_the_engine_meets(tmp_path):
    """With blocks in plenty, memory of the stated size would have been short in about the stated share of steps."""
    usable = 2587
    found = fit(drawn(), usable, whole_blocks(16))
    shares = []
    for seats in (found.at_risk, found.average):
        simulated(seats, 20_000, steps=True, num_prompts=5000).save(tmp_path)
        free = pq.read_table(tmp_path / "steps.parquet", columns=["free_blocks"]).column(0).to_numpy()
        used = (19_999 - free)[2000:-5000]  # from full seats to full seats
        shares.append((used > usable).mean())
    assert shares[0] == pytest.approx(found.risk, abs=0.01)
    assert shares[1] == pytest.approx(0.5, abs=0.2)


def test_preemptions_are_rare_at_it_and_common_above():
    found = fit(drawn(), 2587, whole_blocks(16))
    rare, average, above = (
        simulated(seats, 2588).summary["simbatch"]["num_preemptions"] / 6000
        for seats in (found.at_risk, found.average, 2 * found.at_risk)
    )
    assert rare < 0.01
    assert average > 0.05
    assert above > 0.1
    assert found.worst < found.at_risk < found.average


def test_what_vllm_rejects_and_cuts_is_left_out_and_said():
    lengths = RequestLengths(np.array([100, 900, 1000, 5000]), np.array([10, 200, 10, 10]), "four")
    kept, notes = runnable(lengths, 1000, "four")
    assert kept.num_prompt_tokens.tolist() == [100, 900]
    assert kept.num_output_tokens.tolist() == [10, 100]
    assert [note[:9] for note in notes] == ["2 of 4 pr", "1 of 4 ou"]
    with pytest.raises(UserError, match="rejects it"):
        runnable(lengths, 50, "four")
