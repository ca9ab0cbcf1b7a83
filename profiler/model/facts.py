"""What is known of a model, for `simbatch init`: of a folder here, or of a name in the table of published configs."""

from __future__ import annotations

from simbatch.profiler.model.published import find_model, has_own_config, is_known
from simbatch.sim.commands.settings import ModelFacts

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
