"""Shapes, parameters and quantisation of models by config.json, and what a package and the roofline make of them."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from simbatch.profiler.importers import import_profile
from simbatch.profiler.importers.source import ImportRequest, StepLimits, sample_steps
from simbatch.profiler.model.config import model_config_of, read_model_config
from simbatch.profiler.model.weights import weights_of
from simbatch.profiler.records import predict_s
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.gpus import gpu_of
from simbatch.sim.errors import UserError
from tests import run_command
from tests.made_samples import LLAMA_8B, llama, published
from tests.test_profile_import import LINK

PARAMETERS = {
    "llama-3.1-8b-instruct": 8_030_261_248,
    "llama-3.1-70b-instruct": 70_553_706_496,
    "llama-2-7b-hf": 6_738_415_616,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "mistral-nemo-instruct-2407": 12_247_782_400,
    "yi-34b": 34_388_917_248,
    "codellama-34b-instruct-hf": 33_743_970_304,
    "mixtral-8x7b-v0.1": 46_702_792_704,
}


def compressed(**weights):
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_parameters_are_the_published_ones(name, parameters):
    config = published(name)
    assert config.num_parameters == parameters
    # vLLM pads the vocabulary to 64, which all of these are multiples of
    assert weights_of(config, "bf16").total == 2 * parameters


def test_of_the_experts_a_token_meets_two():
    config = published("mixtral-8x7b-v0.1")
    assert round(config.num_active_parameters / 1e9, 1) == 12.9
    assert llama().num_active_parameters == llama().num_parameters


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_type_is_read_by_its_old_and_its_new_name(key):
    content = {name: value for name, value in LLAMA_8B.items() if name != "torch_dtype"}
    assert model_config_of({**content, key: "float16"}, "config.json").dtype == "float16"


def test_heads_without_groups_and_a_head_dim_of_its_own():
    assert llama(num_key_value_heads=None).num_key_value_heads == 32
    assert llama().head_dim == 128
    assert llama(head_dim=64).head_dim == 64


@pytest.mark.parametrize(
    ("quantised", "meant"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        (compressed(type="int", num_bits=8), "int8"),
        (compressed(type="int", num_bits=4), "int4"),
        (compressed(type="float", num_bits=8), "fp8"),
        (compressed(type="float", num_bits=4), "nvfp4"),
        (compressed(type="int", num_bits=4, symmetric=False), "int4_zeros"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "gptq8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
    ],
)
def test_a_checkpoint_says_how_it_is_quantised(quantised, meant):
    assert llama(quantization_config=quantised).quantisation == meant


def test_smaller_groups_have_more_scales():
    def layers(size):
        config = llama(quantization_config={"quant_method": "awq", "bits": 4, "group_size": size})
        return weights_of(config, "awq").layers

    weights = 32 * 218_103_808  # linear layers of a layer: 4096 x (6144 + 4096 + 3 x 14336)
    assert layers(128) == weights // 2 + weights // 128 * 5 // 2  # a scale of 2 bytes and a zero of a half
    assert layers(64) - weights // 2 == 2 * (layers(128) - weights // 2)
    assert layers(-1) < layers(128)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"architectures": ["BertModel"]}, "architectures"),
        ({"torch_dtype": "int3"}, "torch_dtype"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "quantization_config"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "quantization_config"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 0}}, "group_size"),
        ({"quantization_config": ["awq"]}, "quantization_config"),
    ],
)
def test_what_is_wrong_is_named(changes, place):
    with pytest.raises(UserError) as caught:
        llama(**changes)
    assert place in caught.value.problems[0].place


def test_a_file_that_is_no_json_or_no_object(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="object"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json:1:2"):
        read_model_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    assert read_model_config(tmp_path) == llama()


LIMITS = StepLimits((1, 256), (1, 128), (16, 8192), (16, 2048), (0, 4096), 2048, 200_000)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the package called a hub")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def request(**more):
    given = {"model": "meta-llama/Meta-Llama-3.1-8B", "gpu": "H100", **more}
    return ImportRequest("aiconfigurator-core", None, "p.json", **given)


@pytest.fixture(scope="module")
def h100():
    return import_profile(request())


def test_it_agrees_with_the_same_tables_as_they_were_read_from_files(h100):
    shipped = load_profile("h100-llama-3.1-8b-bf16", folder=Path())
    for regime, mean, bias in (("decode", 0.08, 0.06), ("prefill", 0.06, 0.05), ("mixed", 0.08, 0.05)):
        steps = sample_steps(regime, 300, LIMITS, 5)
        ours, theirs = predict_s(h100.cost_model(), steps), predict_s(shipped.cost_model(), steps)
        assert np.abs(ours / theirs - 1).mean() < mean, regime
        assert abs(ours.sum() / theirs.sum() - 1) < bias, regime


def test_it_says_what_it_is_made_of(h100):
    assert h100.name == "h100-meta-llama-3.1-8b-bf16"
    assert h100.command == (
        "simbatch profiles import --from aiconfigurator-core --model meta-llama/Meta-Llama-3.1-8B --gpu H100 -o p.json"
    )
    assert (h100.licence, h100.vllm_version) == ("Apache-2.0", "0.24.0")
    assert h100.error.against == "tables"
    assert h100.host.assumed


def test_temperature_0_is_quicker_and_a_folder_is_read_as_a_name_is(h100, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    own = import_profile(request(model=str(tmp_path), greedy=True))
    assert own.cost_model().decode_ps(64) < h100.cost_model().decode_ps(64) - 10**9


def test_a_link_takes_the_place_of_the_tables_all_reduces():
    """Two RTX PRO 6000 on PCIe: kernels added up, against ops that were measured inside vLLM; both over one link."""
    over_link = import_profile(request(gpu="rtxpro6000", tensor_parallel_size=2, greedy=True, link=LINK))
    measured = load_profile("rtxpro6000-llama-3.1-8b-bf16-tp2", folder=Path())
    assert over_link.link == measured.link == LINK
    assert "--link-us 40 --link-gb-per-s 16 --greedy -o p.json" in over_link.command
    assert any("a PCIe link of 40 us and 16 GB/s" in note for note in over_link.notes)
    assert over_link.host.launch.graph.base_s == pytest.approx(3.0e-3)
    for regime, most in (("decode", 0.08), ("prefill", 0.08), ("mixed", 0.13)):
        steps = sample_steps(regime, 300, LIMITS, 5)
        ours, theirs = predict_s(over_link.cost_model(), steps), predict_s(measured.cost_model(), steps)
        assert np.abs(ours / theirs - 1).mean() < most, regime


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"gpu": "l4"}, "no tables of vLLM's for it; it has those of a100, b200"),
        ({"model": "meta-llama/Llama-9-8B"}, "nothing is downloaded"),
        ({"quantisation": "awq"}, "measured were bf16"),
        ({"gpu": "a100", "quantisation": "fp8"}, "aiconfigurator-core has no times of it on 1 x a100"),
        ({"model": None}, "needs --model and --gpu"),
    ],
)
def test_what_it_has_not_is_refused(more, said):
    with pytest.raises(UserError, match=said):
        import_profile(request(**more))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("memory=24GiB", "bandwidth, bf16_flops missing"),
        ("memory=24,bandwidth=1TB/s,bf16_flops=1T", "memory: must be a number with its unit"),
        ("speed=3", "takes KEY=VALUE with the keys memory"),
    ],
)
def test_a_wrong_datasheet_says_what_is_wrong(spec, said):
    with pytest.raises(UserError, match=said):
        gpu_of(None, spec)


def test_estimate_takes_a_name_and_any_gpu_and_writes_what_it_shows(tmp_path, capsys):
    out = tmp_path / "mine.json"
    spec = "memory=24GiB,bandwidth=936GB/s,bf16_flops=71T,name=mycard"
    shown = run_command(capsys, "estimate", "Qwen/Qwen3-8B", "--gpu-spec", spec, "--quantization", "awq", "-o", out)
    assert shown.code == 0, shown.err
    profile = load_profile(str(out), folder=Path())
    assert (profile.name, profile.is_estimate) == ("mycard-qwen3-8b-awq", True)
    assert profile.host.assumed
    assert profile.command == (f"simbatch estimate Qwen/Qwen3-8B --gpu-spec {spec} --quantization awq -o mine.json")
    assert "roofline: the shortest step" in shown.out


def test_estimate_from_a_measured_profile_is_what_profiles_estimate_was(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    base = ["--base", "rtx4090-llama-3.1-8b-bf16", "--quantization", "awq", "-o"]
    new = ["estimate", tmp_path, *base, tmp_path / "new.json"]
    old = ["profiles", "estimate", "--model-config", tmp_path / "config.json", *base, tmp_path / "old.json"]
    assert [run_command(capsys, *arguments).code for arguments in (new, old)] == [0, 0]
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("new", "old"))
    assert first["step_time"] == second["step_time"]
    assert "is the measured profile's own" in run_command(capsys, *new, "--gpu", "h100").err
