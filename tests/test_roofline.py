"""Step times of what nobody measured: the roofline, and a measured profile with smaller weights."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from simbatch import simulate
from simbatch.cli import cli
from simbatch.profiler.importers.source import StepLimits, sample_steps
from simbatch.profiler.model.estimates import roofline_profile, scaled_weights_profile
from simbatch.profiler.model.published import find_model
from simbatch.profiler.model.roofline import roofline_of
from simbatch.profiler.model.step_parts import EVEN, routing_of
from simbatch.profiler.records import Steps, predict_s
from simbatch.sim.cost.by_name import load_profile, profile_json
from simbatch.sim.cost.gpus import GPUS, find_gpu, gpu_of
from simbatch.sim.cost.model import step_ps_alike
from simbatch.sim.errors import UserError
from tests.made_samples import llama, published
from tests.made_scenarios import fixed, serving

GPU = GPUS["rtx4090"]
LIMITS = StepLimits((1, 256), (1, 128), (16, 16384), (16, 2048), (0, 16384), 2048, 80_000)
BASE = load_profile("rtx4090-llama-3.1-8b-bf16", folder=Path())


def one_step(*, prefill=0, decodes=0, context=0):
    columns = (bool(prefill), prefill, prefill, prefill * prefill, decodes, decodes * context, context, context)
    return Steps(*(np.array([value], dtype=np.int64) for value in columns))


def cost_of(quantisation=None, gpu=GPU, config=None, **more):
    return roofline_of(config or llama(), gpu, quantisation, **more).step_time().cost_model()


def test_the_work_of_a_decode_is_two_flops_a_weight_and_one_reading_of_them():
    work = roofline_of(llama(), GPU).work(one_step(decodes=1, context=1000))
    layers, head = 32 * 218_103_808, 128_256 * 4096
    attention = 4 * 32 * 128 * 32 * 1000  # scores and values: 2 x 2 FLOPs a head, dimension and layer
    assert work.flops[0] == 2 * (layers + head) + attention
    assert work.bytes[0] == 2 * (layers + head) + 131_072 * 1001


def test_the_work_of_a_prompt_is_causal():
    work = roofline_of(llama(), GPU).work(one_step(prefill=2048))
    attention = 4 * 32 * 128 * 32 * 2048 * 2048 / 2
    assert work.flops[0] == 2 * (2048 * 32 * 218_103_808 + 128_256 * 4096) + attention


def test_no_step_is_shorter_than_the_datasheet_allows():
    for gpu in GPUS.values():
        roofline = roofline_of(llama(), gpu)
        for regime in ("decode", "prefill", "mixed"):
            steps = sample_steps(regime, 200, LIMITS, 1)
            share = roofline.utilisation(steps, predict_s(roofline.step_time().cost_model(), steps))
            assert share.max() < 1
            assert share.min() > 0


def test_quantised_weights_are_read_faster_and_multiplied_as_their_kind_allows():
    decode = {stored: cost_of(stored).decode_ps(1) for stored in ("bf16", "int8", "fp8", "awq")}
    assert decode["awq"] < decode["fp8"] <= decode["int8"] < decode["bf16"]
    prompt = {stored: cost_of(stored).mixed_ps(0, 0, 2048, 2048, 2048**2) for stored in decode}
    assert prompt["bf16"] < prompt["awq"] < 1.1 * prompt["bf16"]  # turned to 16 bits, then multiplied
    assert prompt["int8"] < prompt["fp8"] < prompt["bf16"]
    a100 = [cost_of(stored, GPUS["a100"]).mixed_ps(0, 0, 2048, 2048, 2048**2) for stored in ("fp8", "bf16")]
    assert a100[0] == pytest.approx(a100[1], rel=0.01)  # it cannot multiply fp8


def test_an_fp8_cache_is_read_in_half_the_time():
    ratio = cost_of(kv_cache_dtype="fp8").decode_context_ps / cost_of().decode_context_ps
    assert ratio == pytest.approx(0.5, rel=1e-3)


def test_two_gpus_halve_the_work_and_pay_for_talking():
    one, two = cost_of(), cost_of(tensor_parallel_size=2)
    assert one.decode_ps(1) / 2 < two.decode_ps(1) < one.decode_ps(1)


def test_few_tokens_do_not_read_all_experts():
    experts = llama(
        architectures=["MixtralForCausalLM"], num_local_experts=8, num_experts_per_tok=2, num_hidden_layers=8
    )
    cost = cost_of(config=experts)
    dense = cost_of(config=llama(num_hidden_layers=8))
    assert 1.5 < cost.decode_ps(1) / dense.decode_ps(1) < 2  # two of eight MLPs, one attention
    assert cost.decode_ps(8) > 2.5 * cost.decode_ps(1)


@pytest.mark.parametrize(
    ("name", "model", "most"),
    [
        # of measurements that had no say in the shares (LLMServingSim's); docs/memory.md has the whole table
        ("rtx4090-llama-3.1-8b-bf16", "llama-3.1-8b-instruct", 0.2),
        ("rtxpro6000-llama-3.1-8b-bf16", "llama-3.1-8b-instruct", 0.1),
        ("rtxpro6000-qwen3-32b-bf16-tp2", "qwen3-32b", 0.1),
        # of aiconfigurator's, to which random sampling is added
        ("h100-llama-3.1-8b-fp8-kvfp8", "llama-3.1-8b-instruct", 0.15),
        ("l40s-llama-3.1-70b-bf16-tp4", "llama-3.1-70b-instruct", 0.12),
    ],
)
def test_against_what_was_measured(name, model, most):
    measured = load_profile(name, folder=Path())
    shape = measured.quantisation, measured.kv_cache_dtype, measured.tensor_parallel_size
    greedy = "aiconfigurator" not in measured.source
    estimated = roofline_of(published(model), GPUS[measured.gpu], *shape, greedy=greedy).step_time().cost_model()
    for regime in ("decode", "prefill", "mixed"):
        steps = sample_steps(regime, 300, LIMITS, 3)
        assert np.abs(predict_s(estimated, steps) / predict_s(measured.cost_model(), steps) - 1).mean() < most


def test_a_roofline_profile_says_that_it_is_one():
    profile = roofline_profile(llama(), GPUS["h100"], model="my/Model-8B", quantisation="fp8", kv_cache_dtype="fp8")
    assert profile.name == "h100-model-8b-fp8-kvfp8"
    assert profile.is_estimate
    assert profile.error is None
    assert profile.range is None
    assert profile.memory.num_gpu_blocks_from == "estimate"
    assert "estimate" in profile.notes[0]


def test_a_roofline_profile_of_a_cache_too_short_for_the_model():
    short = roofline_profile(llama(), GPU, model="m")
    assert short.max_model_len == (short.memory.num_gpu_blocks - 1) * 16 < 131_072
    assert roofline_profile(llama(), GPUS["h200"], model="m").max_model_len == 131_072


def test_smaller_weights_help_decodes_and_not_prompts():
    awq = scaled_weights_profile(BASE, llama(), "awq")
    before, after = BASE.cost_model(), awq.cost_model()
    speed_up = [before.decode_ps(n) / after.decode_ps(n) for n in (1, 16, 64, 256)]
    assert 1.8 < speed_up[0] < 16 / 4.15625  # head, attention and launches stay, and int4 is read slower
    assert speed_up[0] > 1.3 * speed_up[2]
    assert speed_up[-1] == pytest.approx(1)
    assert after.mixed_ps(0, 0, 2048, 2048, 2048**2) == before.mixed_ps(0, 0, 2048, 2048, 2048**2)
    assert after.decode_context_ps == before.decode_context_ps


def test_what_smaller_weights_free_becomes_cache():
    awq = scaled_weights_profile(BASE, llama(), "awq")
    freed = BASE.memory.weights_bytes - awq.memory.weights_bytes
    assert freed == 16_060_522_496 - 5_727_854_592
    assert awq.memory.num_gpu_blocks == BASE.memory.num_gpu_blocks + freed // (16 * 131_072)
    assert awq.memory.reserve_bytes == BASE.memory.reserve_bytes
    assert awq.memory.num_gpu_blocks_from == "estimate"


def test_the_awq_profile_that_ships_is_this_estimate():
    shipped = load_profile("rtx4090-llama-3.1-8b-awq", folder=Path())
    made = scaled_weights_profile(BASE, llama(), "awq", shipped.command)
    assert profile_json(made) == profile_json(shipped)


def test_weights_that_are_no_smaller_are_refused():
    with pytest.raises(UserError, match="no smaller"):
        scaled_weights_profile(BASE, llama(), "fp16")


def test_the_config_of_another_model_is_refused():
    with pytest.raises(UserError, match=r"is of another model .* 163,840 KV bytes"):
        scaled_weights_profile(BASE, llama(num_hidden_layers=40), "awq")


def test_what_rests_on_an_estimate_says_so(tmp_path):
    path = tmp_path / "estimate.json"
    path.write_text(profile_json(roofline_profile(llama(), GPUS["l40s"], model="my/Model")))
    result = simulate(serving(str(path), 5, 1, prompt_len=fixed(100), output_len=fixed(10)))
    assert result.summary["simbatch"]["profile"]["is_estimate"] is True
    assert "(an estimate)" in result.text()


@pytest.mark.parametrize(
    ("written", "short"),
    [
        ("H100", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("h100nvl", "h100-nvl"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie"),
        ("rtx 3090", "rtx3090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtxpro6000"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_gpu_is_known_by_the_names_that_people_and_drivers_write(written, short):
    assert find_gpu(written).short == short


def test_every_gpu_has_a_short_name_of_its_own_and_a_source():
    shorts = "rtx3090 rtx4090 rtx5090 rtxpro6000 a10g a40 a5000 a100 a100-40 l4 l20 l40s t4 v100-32 h100 h100-nvl h20"
    assert {*shorts.split(), "h200", "b200", "mi300x"} <= GPUS.keys()
    for short, gpu in GPUS.items():
        assert find_gpu(short) is gpu
        assert find_gpu(gpu.name) is gpu
        assert gpu.sheet
        assert gpu.memory_from
    assert round(GPUS["rtx3090"].total_bytes / 2**30, 2) == 23.58


def test_no_card_of_another_size_is_guessed():
    for wrong in ("rtx3080", "a100-20", "b100", "h10", "RTX6000"):
        with pytest.raises(UserError, match="--gpu-spec") as error:
            find_gpu(wrong)
        assert "did you mean" not in str(error.value)
    with pytest.raises(UserError, match="did you mean h100-pcie"):
        find_gpu("h100 pci")


def test_a_datasheet_of_ones_own_stands_alone_or_changes_a_known_one():
    own = gpu_of(None, "memory=24GiB,bandwidth=936GB/s,bf16_flops=71T,link=32GB/s,name=My Card")
    assert (own.short, own.total_bytes, own.bandwidth_bytes_per_s) == ("my-card", 24 * 2**30, 936e9)
    assert own.peak_flops_per_s("fp8") == 71e12
    assert not own.has_fast_link
    changed = gpu_of("h100", "memory=94GiB")
    assert (changed.short, changed.total_bytes) == ("h100", 94 * 2**30)
    assert changed.flops_per_s == GPUS["h100"].flops_per_s


def model(name):
    return find_model(name)[0]


def test_few_tokens_meet_few_experts_and_many_meet_all():
    assert EVEN.met_share(128, 8, 1) == pytest.approx(8 / 128)
    assert EVEN.met_share(128, 8, 8) == pytest.approx(1 - (1 - 8 / 128) ** 8)
    assert EVEN.met_share(128, 8, 10_000) == pytest.approx(1)
    cost = cost_of(gpu=GPUS["h100"], config=model("Qwen/Qwen3-30B-A3B"))
    one, eight, many = (cost.decode_ps(n) for n in (1, 8, 256))
    assert 2 * one < eight < many < 8 * one  # 3.3 of 30.5 billion weights for one token, nearly all for 256


def test_counted_experts_go_before_even_routing(tmp_path):
    qwen = model("Qwen/Qwen3-30B-A3B")
    counted = routing_of("8:30,64:96", qwen)
    shares = [128 * counted.met_share(128, 8, n) for n in (1, 8, 64, 4096)]
    assert shares == pytest.approx([8, 30, 96, 96])
    even, uneven = (roofline_of(qwen, GPUS["h100"], routing=routing) for routing in (EVEN, counted))
    assert uneven.matrices_s(8) < 0.8 * even.matrices_s(8)
    assert uneven.matrices_s(1) == even.matrices_s(1)
    for wrong in ("8", "64:100,8:30", "8:200", "8:4", "x:9"):
        with pytest.raises(UserError, match="must be TOKENS:EXPERTS"):
            routing_of(wrong, qwen)
    with pytest.raises(UserError, match="no experts"):
        routing_of("8:30", llama())
    out = tmp_path / "uneven.json"
    arguments = ["estimate", "Qwen/Qwen3-30B-A3B", "--gpu", "h100", "--experts-met", "8:30,64:96", "-o", str(out)]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    profile = load_profile(str(out), folder=Path())
    assert "--experts-met 8:30,64:96" in profile.command
    assert any("experts met, as given: 8 tokens 30" in note for note in profile.notes)


def test_a_window_costs_no_more_beyond_it_and_latent_vectors_little():
    gemma, qwen = model("google/gemma-3-27b-it"), model("Qwen/Qwen3-32B")
    per_token = [roofline_of(config, GPUS["h100"]).attention.context_token_s for config in (gemma, qwen)]
    assert per_token[0] < per_token[1] / 2  # 10 of 62 layers see all of a context
    costs = [cost_of(gpu=GPUS["h100"], config=config) for config in (gemma, qwen)]
    more = [[step_ps_alike(cost, 1, k + 1000) - step_ps_alike(cost, 1, k) for k in (0, 1024, 8192)] for cost in costs]
    assert more[1][0] == more[1][1] == more[1][2]
    assert more[0][0] > 4 * more[0][1] == 4 * more[0][2]  # 52 layers see no more than 1,024
    attention = [
        step_ps_alike(costs[0], 0, 0, q, q, q * q) - step_ps_alike(costs[0], 0, 0, q, q, 0) for q in (1024, 8192)
    ]
    assert attention[1] == pytest.approx(64 * attention[0], rel=1e-3)  # of the layers that see all of it
    latent = roofline_of(model("deepseek-ai/DeepSeek-V3"), GPUS["h200"], tensor_parallel_size=8)
    assert latent.attention.context_token_s < per_token[1] / 2


def test_kernel_tables_of_experts_and_mla_are_near_the_roofline():
    """A guard of the constants, which are rounded from these tables (aiconfigurator-core 0.12, ms)."""
    tables = {
        ("Qwen/Qwen3-30B-A3B", "h100", 1): {1: 4.7, 64: 24.2, 256: 33.7},
        ("openai/gpt-oss-120b", "h100", 1): {1: 4.5, 64: 22.7, 256: 35.3},
        ("deepseek-ai/DeepSeek-V3", "h200", 8): {1: 15.3, 64: 31.4, 256: 45.9},
    }
    for (name, gpu, size), steps in tables.items():
        cost = cost_of(gpu=GPUS[gpu], config=model(name), tensor_parallel_size=size, greedy=True)
        for num, table_ms in steps.items():
            ours_ms = 1e-9 * step_ps_alike(cost, num, num * 1024)
            assert ours_ms == pytest.approx(table_ms, rel=0.25), (name, num)
