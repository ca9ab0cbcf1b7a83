"""What a model's `config.json` says: its layers and shapes, and how its checkpoint is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from simbatch.profiler.model.architectures import ARCHITECTURES, BY_MODEL_TYPE
from simbatch.profiler.model.checkpoint import Checkpoint, checkpoint_of
from simbatch.profiler.model.decoder import EXPERT_INNER, EXPERTS, PER_TOKEN, Keys, layers_of
from simbatch.profiler.model.layers import Experts, Layer
from simbatch.profiler.model.mixers import Attention, LatentAttention, Matrix
from simbatch.profiler.model.quantisation import GROUP
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import json_object

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SHORT_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
DENSE_INNER = ("intermediate_size", "block_ff_dim", "moe_intermediate_size")
WRAPPED = ("text_config", "llm_config", "language_config")  # where a model with other towers keeps its decoder


@dataclass(frozen=True)
class ModelConfig:
    """A decoder; `layers` has each one's shapes, the other fields are what most of its layers have.

    `intermediate_size` is an expert's where there are experts; a dense model has one. `vision` is what a model with a
    vision tower says of it.
    """

    architecture: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str
    num_experts: int = 1
    num_experts_per_tok: int = 1
    quantisation: str | None = None  # what the checkpoint's `quantization_config` says, in our words
    group_size: int = GROUP  # inputs that share a scale where weights are int4
    layers: tuple[Layer, ...] = ()
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    vision: Mapping[str, Any] | None = field(default=None, hash=False)
    assumed: tuple[str, ...] = ()  # sentences about what the config does not say
    rotary_dim: int = 0  # numbers of a head that positions turn

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised by head."""
        return any(isinstance(layer.mixer, Attention) and layer.mixer.qk_norm == "head" for layer in self.layers)

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight as published."""
        return ELEMENT_BYTES[self.dtype]

    @property
    def num_parameters(self) -> int:
        """All weights of the decoder: embeddings, layers, norms and head."""
        return self._parameters(active=False)

    @property
    def num_active_parameters(self) -> int:
        """The weights that one token meets: of the experts only those that it is sent to."""
        return self._parameters(active=True)

    @property
    def weights_bytes(self) -> int:
        """All weights as published, not quantised."""
        return self.num_parameters * self.element_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """What all layers together keep of one token, in the weights' type."""
        kept = [one for layer in self.layers for one in layer.kept()]
        return sum(one.heads * (one.keys + one.values) for one in kept) * self.element_bytes

    @property
    def has_latent_attention(self) -> bool:
        """Whether the layers keep one compressed vector of a token (MLA)."""
        return any(isinstance(layer.mixer, LatentAttention) for layer in self.layers)

    @property
    def has_states(self) -> bool:
        """Whether some layers keep a state instead of keys and values (Mamba, linear attention): vLLM's hybrids."""
        return any(kept.kind == "state" for layer, _ in self.distinct_layers for kept in layer.kept())

    @property
    def window(self) -> int | None:
        """Tokens of the window that some layers look at; the largest, should there be several."""
        return max((one.window or 0 for layer, _ in self.distinct_layers for one in layer.kept()), default=0) or None

    @cached_property
    def distinct_layers(self) -> tuple[tuple[Layer, int], ...]:
        """Each kind of layer, and how many of it there are."""
        counts: dict[Layer, int] = {}
        for layer in self.layers:
            counts[layer] = counts.get(layer, 0) + 1
        return tuple(counts.items())

    def _parameters(self, *, active: bool) -> int:
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return (
            embeddings
            + self.hidden_size
            + sum(count * self._of_layer(layer, active=active) for layer, count in self.distinct_layers)
        )

    def _of_layer(self, layer: Layer, *, active: bool) -> int:
        part = layer.feed_forward
        if isinstance(part, Experts):  # as they are published, not as kernels pad them
            layer = replace(layer, feed_forward=replace(part, pads_to=None))

        def met(matrix: Matrix) -> int:
            share = part.per_token if active and isinstance(part, Experts) and matrix.count > 1 else matrix.count
            return share * matrix.num_inputs * matrix.num_outputs

        return sum(map(met, layer.matrices(self.hidden_size))) + layer.others(self.hidden_size)


def read_model_config(path: Path, assume: str | None = None) -> ModelConfig:
    """Read a `config.json`, or the one in a model's folder; raises UserError for what is missing or not known.

    ModelOpt's `hf_quant_config.json` beside it is read where the config itself says nothing of quantisation.
    """
    path = path / "config.json" if path.is_dir() else path
    content, beside = read_json(path), path.parent / "hf_quant_config.json"
    if "quantization_config" not in content and beside.is_file():
        content = {**content, "quantization_config": read_json(beside).get("quantization")}
    return model_config_of(content, str(path), assume)


def model_config_of(content: dict[str, Any], place: str, assume: str | None = None) -> ModelConfig:
    """The shapes that a `config.json`'s content says; `place` is where it stands, for messages.

    `assume`: the architecture to plan one as that is not known; the answer says what that means.
    """
    inner: dict[str, Any] = next((content[key] for key in WRAPPED if isinstance(content.get(key), dict)), {})
    name, assumed = _named(content, inner, place, assume)
    architecture = ARCHITECTURES[assume if assumed and assume else name]
    tied = {key: content[key] for key in ("tie_word_embeddings",) if key in content}  # the wrapper's goes first
    keys = Keys({**content, **inner, **tied}, architecture.defaults, place)
    checkpoint = checkpoint_of(
        content.get("quantization_config") or inner.get("quantization_config"), f"{place} quantization_config"
    )
    quantisation, heads = checkpoint.main, keys.count("num_attention_heads")
    head_dim = keys.count("head_dim", default=keys.count("hidden_size") // heads)
    layers = layers_of(keys, architecture, quantisation)
    moe = any(isinstance(layer.feed_forward, Experts) for layer in layers)
    stored = checkpoint.default or next((one for _, one in checkpoint.named), None)
    return ModelConfig(
        architecture=name,
        num_hidden_layers=len(layers),
        hidden_size=keys.count("hidden_size"),
        intermediate_size=keys.count(*(EXPERT_INNER if moe else DENSE_INNER), default=_widest(layers)),
        num_attention_heads=heads,
        num_key_value_heads=keys.count("num_key_value_heads", default=heads),
        head_dim=head_dim,
        vocab_size=keys.count("vocab_size"),
        max_position_embeddings=keys.count("max_position_embeddings", "max_seq_len", "n_positions"),
        tie_word_embeddings=bool(keys.get("tie_word_embeddings", default=architecture.is_tied)),
        dtype=_dtype(keys),
        num_experts=keys.count(*EXPERTS) if moe else 1,
        num_experts_per_tok=keys.count(*PER_TOKEN) if moe else 1,
        quantisation=quantisation,
        group_size=stored.group_size if stored is not None else GROUP,
        layers=layers,
        checkpoint=checkpoint,
        vision=content.get("vision_config"),
        assumed=assumed,
        rotary_dim=keys.size("qk_rope_head_dim") or int(head_dim * float(keys.get("partial_rotary_factor", default=1))),
    )


def _named(
    content: Mapping[str, Any], inner: Mapping[str, Any], place: str, assume: str | None
) -> tuple[str, tuple[str, ...]]:
    """The architecture, of a wrapper that is not known its decoder's; and what is assumed where neither is."""
    name = str((content.get("architectures") or [""])[0])
    if assume is not None and assume not in ARCHITECTURES:
        near = get_close_matches(assume, ARCHITECTURES, n=1)
        mend = f"did you mean {near[0]}?" if near else f"one of {', '.join(ARCHITECTURES)}"
        raise UserError(Problem("--assume", "is no architecture that is known", assume, mend))
    decoder = (inner.get("architectures") or [""])[0] or BY_MODEL_TYPE.get(str(inner.get("model_type")), "")
    if name in ARCHITECTURES:
        return name, ()
    if decoder in ARCHITECTURES and assume is None:
        return decoder, (f"{name} is planned as the {decoder} in it, and its vision tower by its widths.",)
    if assume is None:
        rule = f"is not among the {len(ARCHITECTURES)} architectures that are known"
        mend = (
            "add `--assume LlamaForCausalLM` (or another that it resembles) to plan it as far as its config.json goes"
        )
        raise UserError(Problem(f"{place} architectures", rule, name, mend))
    return name, (
        f"{name or 'the architecture'} is not known: planned with the layers that its config.json says and, where it "
        f"says nothing (biases, norms, which layers have windows), those of {assume}.",
    )


def _widest(layers: Sequence[Layer]) -> int:
    """The widest feed-forward part, where layers have widths of their own."""
    return max((part.inner for layer in layers if (part := layer.feed_forward) is not None), default=0)


def _dtype(keys: Keys) -> str:
    dtype = str(keys.get("torch_dtype", "dtype", default="bfloat16"))
    if dtype not in ELEMENT_BYTES:
        raise UserError(Problem(f"{keys.place} torch_dtype", f"must be one of {', '.join(ELEMENT_BYTES)}", dtype))
    # vLLM loads fp32 as bf16 unless told otherwise (config/model.py `_resolve_auto_dtype`)
    return "bfloat16" if dtype == "float32" else dtype


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises UserError with the place of a mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem(str(path), f"cannot be read: {error}")) from None
    content: dict[str, Any] = json_object(text, path)
    return content
