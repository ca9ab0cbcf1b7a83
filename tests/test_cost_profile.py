import copy
import json
from pathlib import Path

import pytest

from simbatch.sim.cost import InlineProfile, MeasuredProfile, load_profile
from simbatch.sim.cost.load import shipped_names, shipped_text
from simbatch.sim.cost.memory import Settled
from simbatch.sim.errors import UserError

SHIPPED = "rtx4090-llama-3.1-8b-bf16"
GIB = 2**30
INLINE = {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}}


@pytest.fixture
def content():
    return json.loads(shipped_text(SHIPPED))


@pytest.fixture
def rtx4090():
    return load_profile(SHIPPED, folder=Path())


def with_memory(content: dict, gpu: str, total_gib: float) -> MeasuredProfile:
    """The shipped profile on a larger GPU: what is left over goes to the reserve."""
    changed = copy.deepcopy(content)
    memory = changed["memory"]
    kv_bytes = memory["num_gpu_blocks"] * memory["block_size"] * memory["kv_bytes_per_token"]
    memory["total_bytes"] = int(total_gib * GIB)
    memory["reserve_bytes"] = int(memory["total_bytes"] * 0.9) - memory["weights_bytes"] - kv_bytes
    return MeasuredProfile.model_validate(changed | {"gpu": gpu})


def test_inline_has_vllms_defaults():
    profile = load_profile(INLINE, folder=Path())
    assert isinstance(profile, InlineProfile)
    assert (profile.name, profile.is_gpu, profile.measured, profile.fit_error) == ("inline", False, None, None)
    assert (profile.max_model_len, profile.default_block_size) == (8192, 16)
    assert (profile.default_max_num_seqs, profile.default_max_num_batched_tokens) == (256, 2048)
    assert profile.num_gpu_blocks_for(0.92, "auto", 16) == 1000


def test_every_shipped_profile_loads_under_its_own_name():
    assert SHIPPED in shipped_names()
    for name in shipped_names():
        profile = load_profile(name, folder=Path())
        assert profile.name == name
        assert profile.cost_model().decode_ps(1) > 0


def test_the_shipped_profile_says_where_it_comes_from(rtx4090):
    assert (rtx4090.gpu, rtx4090.licence, rtx4090.vllm_version) == ("rtx4090", "MIT", "0.19.0")
    assert "LLMServingSim" in rtx4090.source
    assert rtx4090.command.startswith("simbatch profiles import --from llmservingsim")
    assert rtx4090.is_gpu
    assert not rtx4090.is_estimate
    assert rtx4090.max_model_len == 32768
    assert any("32768" in note for note in rtx4090.notes)
    assert rtx4090.fit_error.decode.mape <= 0.03
    assert max(rtx4090.fit_error.prefill.mape, rtx4090.fit_error.mixed.mape) <= 0.06
    assert rtx4090.fit_error.summary().endswith("(fit to composed tables)")


def test_shipped_coefficients_have_physical_signs_and_never_fall(rtx4090):
    cost = rtx4090.cost_model()
    decodes = [cost.decode_ps(n) for n in range(1, 1025)]
    assert decodes == sorted(decodes)
    mixed = [cost.mixed_ps(4, 4000, tokens, tokens, tokens * tokens) for tokens in range(1, 4097)]
    assert mixed == sorted(mixed)
    assert cost.decode_context_ps > 0


def test_blocks_are_the_ones_that_vllm_resolved_and_follow_the_settings(rtx4090):
    assert rtx4090.num_gpu_blocks_for() == 2588
    assert rtx4090.num_gpu_blocks_for(0.9, "auto", 16) == 2588
    assert rtx4090.num_gpu_blocks_for(kv_cache_dtype="bfloat16") == 2588
    assert rtx4090.num_gpu_blocks_for(kv_cache_dtype="fp8") == 2 * 2588
    assert rtx4090.num_gpu_blocks_for(block_size=32) == 2588 // 2
    more_bytes = int(0.95 * 25250627584) - int(0.9 * 25250627584)
    assert rtx4090.num_gpu_blocks_for(0.95) - 2588 == more_bytes // (16 * 131072)
    of_run = Settled(256, 2048, 51)
    assert rtx4090.num_gpu_blocks_for(0.9, "auto", 16, of_run) == 2588
    # twice the tokens: the forward pass's peak of 2,048 more, 3 hidden states and 3 of the inner width in 16 bits
    before = max(2048 * 110592, 256 * 769536 + 2048 * 8192)
    less_bytes = 4096 * 110592 - before
    blocks = rtx4090.num_gpu_blocks_for(0.9, "auto", 16, of_run._replace(max_num_batched_tokens=4096))
    assert 2588 - blocks == -(-less_bytes // (16 * 131072)) or 2588 - blocks == less_bytes // (16 * 131072)
    assert rtx4090.num_gpu_blocks_for(0.9, "auto", 16, of_run._replace(max_num_seqs=1024)) < 2588
    assert rtx4090.memory.weights_bytes == 2 * 8_030_261_248
    assert (
        rtx4090.memory.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    )  # keys and values, layers, KV heads, head dim, bf16


@pytest.mark.parametrize(
    ("gpu", "total_gib", "seqs", "tokens"),
    [
        ("rtx4090", 23.5, 256, 2048),
        ("l40s", 44.5, 256, 2048),
        ("a100", 79.2, 256, 2048),
        ("h100", 79.1, 1024, 8192),
        ("h200", 139.8, 1024, 8192),
        ("b200", 178.0, 1024, 16384),
    ],
)
def test_default_limits_follow_the_gpus_memory(content, gpu, total_gib, seqs, tokens):
    profile = with_memory(content, gpu, total_gib)
    assert (profile.default_max_num_seqs, profile.default_max_num_batched_tokens) == (seqs, tokens)


def test_a_file_is_taken_from_the_scenarios_folder(tmp_path, content):
    (tmp_path / "mine.json").write_text(json.dumps({**content, "name": "mine"}))
    (tmp_path / "short.json").write_text(json.dumps(INLINE))
    assert load_profile("mine.json", folder=tmp_path).name == "mine"
    assert load_profile("short.json", folder=tmp_path).name == "short"
    assert load_profile(str(tmp_path / "mine.json"), folder=Path("elsewhere")).num_gpu_blocks_for() == 2588


def test_settings_that_leave_nothing_are_named(rtx4090):
    with pytest.raises(UserError, match=r"engine.gpu_memory_utilization: .* \(got 0.5\); raise it"):
        rtx4090.num_gpu_blocks_for(0.5)
    with pytest.raises(UserError, match=r"engine.kv_cache_dtype: unknown type \(got 'int3'\); known: auto, float16"):
        rtx4090.num_gpu_blocks_for(kv_cache_dtype="int3")
    with pytest.raises(UserError, match=r"engine.kv_cache_dtype: an inline profile has no memory figures"):
        load_profile(INLINE, folder=Path()).num_gpu_blocks_for(kv_cache_dtype="fp8")
    with pytest.raises(UserError, match=r"engine.gpu_memory_utilization: an inline profile has no memory figures"):
        load_profile(INLINE, folder=Path()).num_gpu_blocks_for(0.8)
