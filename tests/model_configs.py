"""Model configurations for tests: a small one, and those of published models where they are at hand."""

from pathlib import Path

import pytest

from simbatch.profiler.model.config import model_config_of, read_model_config

SHARED = Path(__file__).parents[2] / "shared" / "models"
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def llama(**changes):
    """Llama-3.1-8B with other keys; None removes one."""
    content = {key: value for key, value in {**LLAMA_8B, **changes}.items() if value is not None}
    return model_config_of(content, "config.json")


def published(name):
    """A published model's configuration; the test is skipped where it is not there."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no configuration of {name} beside the project")
    return read_model_config(folder)
