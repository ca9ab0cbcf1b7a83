"""Models by their Hugging Face names: the figures of their published configs, shipped; nothing is downloaded."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from simbatch.profiler.model.config import ModelConfig, model_config_of, read_model_config
from simbatch.profiler.model.quantisation import GROUP
from simbatch.sim.commands.settings import ModelFacts
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import stat_of

SHORT = {"bitsandbytes": "bnb"}  # where profiles have another word


def facts_of(model: str) -> ModelFacts | None:
    """Its layers, vocabulary, weights and context; None where nothing says them, UserError for a config that is wrong.

    Layers are compared with all their shapes, whatever their weights are stored in.
    """
    if not is_known(model):
        return None
    config, _, _ = find_model(model)
    stored = config.quantisation or ""
    billions = f"{config.num_parameters / 1e9:.3g} B parameters"
    words = f"{config.architecture}, {config.num_hidden_layers} layers of {config.hidden_size:,}, {billions}"
    return ModelFacts(
        layers=(config.hidden_size, config.layers, config.tie_word_embeddings),
        vocab_size=config.vocab_size,
        weights=SHORT.get(stored, stored),
        kv_cache_dtype=(config.checkpoint.kv_cache_dtype if has_own_config(model) else None) or "auto",
        max_model_len=config.max_position_embeddings,
        words=words,
    )


FILE = "published.json"
# Words of names that do not change a shape. A version does: Mistral 7B 0.1 has windows, 0.3 has none.
VARIANTS = {"instruct", "it", "chat", "base", "hf", "thinking", "reasoning", "pt"}
DATE = re.compile(r"-\d{4}$")
QUANTISED = {  # endings that say how a checkpoint is stored, and what that means
    **{key: {"quant_method": "awq", "bits": 4, "group_size": GROUP} for key in ("awq", "awq-4bit", "awq-int4")},
    "gptq-int4": {"quant_method": "gptq", "bits": 4, "group_size": GROUP},
    "gptq-int8": {"quant_method": "gptq", "bits": 8, "group_size": GROUP},
    "fp8": {"quant_method": "fp8"},
    "fp8-dynamic": {"quant_method": "fp8"},
    "quantized.w4a16": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"type": "int", "num_bits": 4}}},
    },
    "quantized.w8a8": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"type": "int", "num_bits": 8}}},
    },
    **{key: {"quant_method": "modelopt", "quant_algo": "NVFP4"} for key in ("nvfp4", "fp4")},
    "bnb-4bit": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}


@cache
def published_models() -> dict[str, dict[str, Any]]:
    """The configs by name, as they are published (docs/memory.md names their sources)."""
    text = (resources.files("simbatch.profiler.model") / FILE).read_text(encoding="utf-8")
    models: dict[str, dict[str, Any]] = json.loads(text)["models"]
    return models


def published_config(name: str) -> dict[str, Any] | None:
    """The config of a model of the table, or of one that has its shape; None for others."""
    known = _known(name)
    return None if known is None else published_models()[known]


def is_known(model: str) -> bool:
    """Whether `find_model` finds it: a folder with a config.json, one itself, or a name of the table."""
    return has_own_config(model) or (_known(model) or _with_ending(model)[0]) is not None


def has_own_config(model: str) -> bool:
    """Whether a config is this very model's, and not of one that has its shape."""
    path = Path(model)
    return model in published_models() or stat_of(path / "config.json" if path.is_dir() else path) is not None


def find_model(model: str | Path, assume: str | None = None) -> tuple[ModelConfig, str, tuple[str, ...]]:
    """A folder, a config.json, or a name of the table: its config, a short name, and what was taken for granted.

    Raises UserError where it is none of them.
    """
    path = Path(model)
    file = path / "config.json" if path.is_dir() else path
    if stat_of(file) is not None:
        config = read_model_config(path, assume)
        return config, (path if path.is_dir() else path.parent).resolve().name, config.assumed
    if path.is_dir():
        rule = "there is no config.json in this folder"
        raise UserError(Problem(str(path), rule, mend="name the folder that holds it; nothing is downloaded"))
    return _by_name(str(model), assume)


def _by_name(name: str, assume: str | None) -> tuple[ModelConfig, str, tuple[str, ...]]:
    found, ending = _known(name), None
    if found is None:
        found, ending = _with_ending(name)
    if found is None:
        raise _unknown(name)
    content, notes = published_models()[found], []
    if ending is not None:
        stored = QUANTISED.get(ending) or published_models()[ending]["quantization_config"]
        content = {**content, "quantization_config": stored}
        notes.append(f"{name} is planned as {found} with {ending} weights: its own config.json is not in the table.")
    elif _key(found) != _key(name):
        notes.append(f"{name} is planned as {found}, which has its shape.")
    config = model_config_of(content, found, assume)
    return config, name.rsplit("/", 1)[-1], (*notes, *config.assumed)


def _known(name: str) -> str | None:
    return next((found for form in _forms(name) if (found := _keys().get(form)) is not None), None)


def _with_ending(name: str) -> tuple[str | None, str | None]:
    """A model, and how it is stored: an ending of QUANTISED, or what its maker stores so of another date."""
    lower = name.lower()
    for ending in sorted(QUANTISED, key=len, reverse=True):
        if lower.endswith(f"-{ending}") and (found := _known(name[: -len(ending) - 1])) is not None:
            by_maker = (_keys().get(f"{form}-{ending}") for form in _forms(found))
            own = next((one for one in by_maker if one and one.partition("/")[0] == name.partition("/")[0]), None)
            if own is None:
                return found, ending
            return (own, None) if _key(own) == f"{_key(found)}-{ending}" else (found, own)
    return None, None


@cache
def _keys() -> dict[str, str]:
    """Names, then those without what does not change a shape, then those without a date."""
    found: dict[str, str] = {}
    for forms in zip(*(_forms(name) for name in published_models()), strict=True):
        for form, name in zip(forms, published_models(), strict=True):
            found.setdefault(form, name)
    return found


def _forms(name: str) -> tuple[str, str, str]:
    """A name as it is, without its variant, and without its date too."""
    key = _key(name)
    plain = "-".join(word for word in re.split(r"[-_]", key) if word not in VARIANTS)
    return key, plain, DATE.sub("", plain)


def _key(name: str) -> str:
    """Without organisation, in lower case; Meta writes its name in front of some."""
    return name.rsplit("/", 1)[-1].lower().removeprefix("meta-")


def _unknown(name: str) -> UserError:
    models = published_models()
    near = get_close_matches(_key(name), [_key(known) for known in models], n=3, cutoff=0.5)
    nearest = [known for known in models if _key(known) in near]
    guess = f"near it: {', '.join(nearest)}; or " if nearest else ""
    rule = f"is no folder or config.json here, and none of the {len(models)} models that ship"
    mend = f"{guess}name the folder of a checkpoint, or a config.json saved from its page; nothing is downloaded"
    return UserError(Problem("MODEL", rule, name, mend))
