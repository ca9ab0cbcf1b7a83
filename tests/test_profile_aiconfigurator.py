"""Kernel latencies composed to steps: on small tables made here, and on the real ones where they are."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simbatch.profiler.fit.design import sample_steps
from simbatch.profiler.fit.two_regime import figures
from simbatch.profiler.importers.aiconfigurator import KernelTables
from simbatch.profiler.importers.imported import import_profile
from simbatch.profiler.importers.kernels import AllReduce, ContextAttention, Gemm, GenerationAttention, LinkAllReduce
from simbatch.profiler.importers.llmservingsim import OpTables
from simbatch.profiler.importers.source import ImportRequest
from simbatch.profiler.model.config import read_model_config
from simbatch.sim.cost.provenance import Link
from simbatch.sim.errors import UserError
from tests.test_profile_import import SHARED, step, with_measurements

HEADS = {"num_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "kv_cache_dtype": "bfloat16", "window_size": 0}
BANDWIDTH = 1e12


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def gemm_rows(ms, ns, ks, dtype="bfloat16"):
    """1 us, or 1 ns for 2 * m * n * k / 1e6 operations, whatever is more."""
    return [
        {"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": max(1e-3, 2e-12 * m * n * k)}
        for m in ms
        for n in ns
        for k in ks
    ]


def context_ms(length):
    return 0.01 + 1e-8 * length * length


@pytest.fixture
def gpu(tmp_path):
    """A GPU's folder, with tables that follow simple laws."""
    folder = tmp_path / "h100_sxm"
    tables = folder / "vllm-0.24.0"
    sizes = (256, 512, 1024, 2048, 4096)
    gemm = [row for dtype in ("bfloat16", "fp8") for row in gemm_rows((1, 64, 1024, 8192), sizes, sizes, dtype)]
    write(tables / "gemm_perf.parquet", gemm)
    lengths = (1, 64, 1024, 2048, 4096, 8192, 16384)
    context = [{**HEADS, "batch_size": 1, "isl": isl, "latency": context_ms(isl)} for isl in lengths]
    write(tables / "context_attention_perf.parquet", context)
    generation = [
        {**HEADS, "batch_size": n, "step": k, "latency": 0.02}
        for n in (1, 64, 1024)
        for k in (1, 1023, 16383)
        if n * k <= 2**20
    ]
    write(tables / "generation_attention_perf.parquet", generation)
    reduce = [
        {"num_gpus": 2, "backend": backend, "message_size": size, "latency": ms, "version": "0.22.0"}
        for backend, ms in (("vllm_graph", 0.005), ("vllm_eager", 0.02))
        for size in (128, 2**20, 2**24)
    ]
    write(tables / "custom_allreduce_perf.parquet", reduce)
    (tmp_path / "h100_sxm.yaml").write_text(json.dumps({"gpu": {"mem_bw": BANDWIDTH}}))
    return folder


@pytest.fixture
def config(tmp_path):
    shape = {"num_hidden_layers": 3, "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8}
    shape |= {"num_key_value_heads": 2, "head_dim": 128, "architectures": ["LlamaForCausalLM"], "vocab_size": 4096}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(shape | {"max_position_embeddings": 8192}))
    return path


def kernel_tables(gpu, config, degree=1, **more):
    shape = {"quantisation": "bf16", "kv_cache_dtype": "bfloat16", "tensor_parallel_size": degree}
    return KernelTables(gpu, read_model_config(config), **shape, **(more or {"greedy": True}))


def test_a_product_between_measured_ones_follows_the_power_law(tmp_path):
    path = write(tmp_path / "gemm.parquet", gemm_rows((1, 4096, 8192), (1024, 4096), (1024, 4096)))
    found = Gemm(path, "bfloat16", 3000, 2000).time_s(np.array([4096, 5000, 8192, 16384]))
    assert found == pytest.approx(2e-15 * np.array([4096, 5000, 8192, 16384]) * 3000 * 2000, rel=1e-9)


def test_a_product_wider_than_any_measured_takes_in_proportion(tmp_path):
    path = write(tmp_path / "gemm.parquet", gemm_rows((1, 8192), (1024, 4096), (1024, 4096)))
    assert Gemm(path, "bfloat16", 12288, 4096).time_s(np.array([1])) == pytest.approx(
        3 * Gemm(path, "bfloat16", 4096, 4096).time_s(np.array([1]))
    )


def test_a_chunk_costs_its_prompt_without_its_history_and_at_least_itself_alone(gpu):
    path = gpu / "vllm-0.24.0" / "context_attention_perf.parquet"
    table = ContextAttention(path, 8, 2, 128, "bfloat16")
    chunk, history = np.array([2048.0, 64.0, 0.0]), np.array([2048.0, 1.0, 512.0])
    found = table.time_s(chunk, history)
    assert found[0] == pytest.approx(1e-3 * (context_ms(4096) - context_ms(2048)))
    assert found[1] == pytest.approx(1e-3 * context_ms(64))
    assert found[2] == 0


def test_more_than_eight_kv_heads_are_more_batch(tmp_path):
    rows = [
        {**HEADS, "num_heads": 8, "num_key_value_heads": 8, "batch_size": n, "isl": k, "step": k, "latency": n * k}
        for n in (1, 2, 4, 8)
        for k in (1, 1024)
    ]
    path = write(tmp_path / "attention.parquet", rows)
    context = ContextAttention(path, 32, 32, 128, "bfloat16")
    assert context.time_s(np.array([1024.0]), np.array([0.0])) == pytest.approx(4 * 1.024)
    generation = GenerationAttention(path, 32, 32, 128, "bfloat16")
    assert generation.time_s(np.array([2]), np.array([1024.0]), np.array([0.0])) == pytest.approx(8 * 1.024)


def test_decodes_are_never_faster_than_reading_their_kv(gpu):
    table = GenerationAttention(gpu / "vllm-0.24.0" / "generation_attention_perf.parquet", 8, 2, 128, "bfloat16")
    times = table.time_s(np.array([64, 64, 0]), np.array([1000.0, 1000.0, 0.0]), np.array([1e-6, 1e-4, 1e-4]))
    assert times == pytest.approx([2e-5, 1e-4, 0])


def test_all_reduce_is_in_a_graph_up_to_512_tokens(gpu):
    table = AllReduce(gpu / "vllm-0.24.0" / "custom_allreduce_perf.parquet", 2)
    assert table.time_s(np.array([1, 512, 513]), 1024) == pytest.approx([5e-6, 5e-6, 2e-5])


@pytest.mark.parametrize("degree", [1, 2])
def test_a_step_is_the_sum_of_its_kernels(gpu, config, degree):
    if degree == 2:
        tables = gpu / "vllm-0.24.0"
        for name in ("context_attention_perf", "generation_attention_perf"):
            rows = pq.read_table(tables / f"{name}.parquet").to_pylist()
            half = [{**row, "num_heads": 4, "num_key_value_heads": 1} for row in rows]
            write(tables / f"{name}.parquet", rows + half)
    prefill, n, k = 1024 - 64, 64, 1000
    found = kernel_tables(gpu, config, degree).step_time_s(step(chunk=prefill, contexts=[k] * n))[0]
    shapes = ((1536 // degree, 1024), (1024, 1024 // degree), (4096 // degree, 1024), (1024, 2048 // degree))
    products = sum(2e-15 * 1024 * rows * columns for rows, columns in shapes)
    kv_read = n * k * (2 * 256 // degree * 2) / (0.87 * BANDWIDTH) + 6e-6
    attention = np.interp(prefill, [64, 1024], [context_ms(64), context_ms(1024)])  # about: the law is not linear
    elements = 8 * 1024 + (2 * (1024 + 256) + 4 * 256 + 3 * 2048) // degree
    layer = products + max(2e-5, kv_read) + 1024 * 2 * elements / (0.8 * BANDWIDTH) + 8e-6
    layer += 2 * 2e-5 if degree == 2 else 0
    head = max(1e-6, 2e-15 * 65 * 4096 // degree * 1024)
    assert found == pytest.approx(3 * (layer + 1e-3 * attention) + head + 30e-6 + 0.6e-6 * 65, rel=0.01)


def test_random_sampling_costs_by_the_vocabulary_and_the_bandwidth(gpu, config):
    batch = step(contexts=[100] * 64)
    greedy, drawn = (kernel_tables(gpu, config, greedy=greedy).step_time_s(batch)[0] for greedy in (True, False))
    assert drawn - greedy == pytest.approx(64 * 22e-6 * 4096 / 128_256 * 3.35e12 / BANDWIDTH)
    [note] = kernel_tables(gpu, config, greedy=False).notes
    assert "4,096 tokens are added to the tables" in note
    assert kernel_tables(gpu, config).notes == ()


def test_all_reduce_over_a_link_is_latency_and_the_ring_s_bytes():
    link = Link(latency_s=40e-6, bandwidth_bytes_per_s=16e9)
    tokens = np.array([1, 2048])
    assert LinkAllReduce(link, 2).time_s(tokens, 4096) == pytest.approx(40e-6 + tokens * 8192 / 16e9)
    assert LinkAllReduce(link, 4).time_s(tokens, 4096) == pytest.approx(40e-6 + 1.5 * tokens * 8192 / 16e9)


def test_an_import_has_an_assumed_host_and_says_its_link(gpu, config):
    link = Link(latency_s=40e-6, bandwidth_bytes_per_s=16e9)
    asked = {"model": "a/b", "model_config": config, "link": link, "greedy": True, "tensor_parallel_size": 2}
    tables = gpu / "vllm-0.24.0"
    for name in ("context_attention_perf", "generation_attention_perf"):
        rows = pq.read_table(tables / f"{name}.parquet").to_pylist()
        write(tables / f"{name}.parquet", rows + [{**row, "num_heads": 4, "num_key_value_heads": 1} for row in rows])
    profile = import_profile(ImportRequest("aiconfigurator", gpu, "x.json", **asked))
    assert profile.link == link
    assert "--link-us 40 --link-gb-per-s 16 --greedy -o x.json" in profile.command
    assert any("a PCIe link of 40 us and 16 GB/s" in note for note in profile.notes)
    assert profile.host.assumed
    assert profile.front_end.assumed
    assert profile.host.launch.graph.base_s == pytest.approx(3.0e-3)
    assert "assumed, not measured" in profile.host.source


def test_what_was_not_measured_is_refused_by_name(gpu, config, tmp_path):
    def refused(expected, folder=gpu, **options):
        asked = {"model": "a/b", "model_config": config, **options}
        with pytest.raises(UserError, match=expected):
            import_profile(ImportRequest("aiconfigurator", folder, "x.json", **asked))

    refused("--model: the tables name no model", model=None)
    refused("--quantization: measured were bf16, fp8 .*awq", quantisation="awq")
    refused("--kv-cache-dtype: measured were auto and fp8", kv_cache_dtype="int8")
    refused(
        "nothing was measured with kv_cache_dtype fp8; beside the other settings it has: bfloat16", kv_cache_dtype="fp8"
    )
    refused("nothing was measured with num_gpus 8|num_key_value_heads 1", tensor_parallel_size=8)
    refused("must divide 8 heads", tensor_parallel_size=3)
    refused("DIR: must end in one of h100_sxm", folder=tmp_path)
    (gpu / "vllm-0.24.0" / "gemm_perf.parquet").write_text("no parquet")
    refused("gemm_perf.parquet: cannot be read")
    (gpu.parent / "h100_sxm.yaml").write_text("gpu: {}")
    refused("h100_sxm.yaml gpu.mem_bw: must be a number of bytes/s above 0")
    (gpu.parent / "h100_sxm.yaml").unlink()
    refused("h100_sxm.yaml: cannot be read")


@with_measurements
@pytest.mark.parametrize(
    ("folder", "degree", "decode", "prefill", "mixed"),
    [("llama-3.1-8b", 1, 0.05, 0.08, 0.13), ("llama-3.1-8b", 2, 0.08, 0.08, 0.13), ("qwen3-32b", 1, 0.05, 0.05, 0.15)],
)
def test_two_sources_agree_on_the_gpu_that_both_measured(folder, degree, decode, prefill, mixed):
    """RTX PRO 6000: kernels added up by the recipe against ops measured inside vLLM."""
    name = {"llama-3.1-8b": "llama-3.1-8b-instruct"}.get(folder, folder)
    config = read_model_config(SHARED / "models" / name / "config.json")
    gpu = SHARED / "gpu" / "aiconfigurator" / "rtx_pro_6000_server"
    all_reduce = AllReduce(gpu / "vllm-0.24.0" / "custom_allreduce_perf.parquet", 2) if degree == 2 else None
    profile = Path(SHARED / "gpu" / "llmservingsim" / f"rtxpro6000-{folder}" / "profile")
    ops = OpTables(profile, config, degree, all_reduce)
    kernels = KernelTables(
        gpu, config, quantisation="bf16", kv_cache_dtype="bfloat16", tensor_parallel_size=degree, greedy=True
    )
    for regime, most in (("decode", decode), ("prefill", prefill), ("mixed", mixed)):
        steps = sample_steps(regime, 1000, ops.limits(300_000), seed=5)
        assert figures(kernels.step_time_s(steps), ops.step_time_s(steps)).mape < most
