"""Shapes, parameters and quantisation of models from their config.json."""

import json

import pytest

from simbatch.profiler.model.config import model_config_of, read_model_config
from simbatch.profiler.model.weights import weights_of
from simbatch.sim.errors import UserError
from tests.made_samples import LLAMA_8B, llama, published

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
