"""Bytes of a model's weights on one GPU, part by part, sharded as vLLM shards them.

Heads, inner widths and the vocabulary (padded to a multiple of 64) are divided among the GPUs, in expert parallelism
whole experts are; key and value heads are repeated where there are fewer than GPUs; norms and routers are on each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from simbatch.profiler.model.config import SHORT_DTYPES, ModelConfig
from simbatch.profiler.model.layers import Experts, Layer
from simbatch.profiler.model.mixers import Attention, LatentAttention, Matrix
from simbatch.sim.errors import Problem, UserError

VOCAB_MULTIPLE = 64


@dataclass(frozen=True)
class Weights:
    """Bytes on one GPU; `copies`: what vLLM makes of them after loading; `vision`: another tower's, estimated."""

    embeddings: int
    head: int
    layers: int  # linear layers of all layers, quantised if anything is
    others: int  # norms, biases, convolutions
    copies: int = 0
    vision: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.embeddings + self.head + self.layers + self.others + self.copies + self.vision


def local_vocab(config: ModelConfig, tensor_parallel_size: int) -> int:
    """Rows of embeddings and head on one GPU."""
    return -(-config.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE // tensor_parallel_size


def layer_matrices(
    config: ModelConfig, tensor_parallel_size: int, index: int | None = None, *, expert_parallel: bool = False
) -> list[Matrix]:
    """The linear layers of one decoder layer on one GPU; UserError when the heads cannot be divided so.

    `index` is the layer, whose own types the checkpoint may say; None is the last one, and the model's usual type.
    """
    layer = config.layers[-1 if index is None else index]
    check_divides(layer, config, tensor_parallel_size, expert_parallel)
    matrices = layer.matrices(config.hidden_size, tensor_parallel_size, expert_parallel)
    if index is None:
        return [replace(matrix, group_size=config.group_size) for matrix in matrices]
    return [_as_stored(matrix, config, index) for matrix in matrices]


def _as_stored(matrix: Matrix, config: ModelConfig, index: int) -> Matrix:
    """With the type that the checkpoint says of this matrix of this layer."""
    published = SHORT_DTYPES[config.dtype]
    if matrix.keeps is not None:
        return matrix if matrix.keeps == "fp32" else replace(matrix, keeps=published)
    stored = config.checkpoint.of([f"layers.{index}.{name.lstrip('.')}" for name in matrix.modules])
    if stored is None:
        return replace(matrix, keeps=published)
    return replace(matrix, keeps=stored.name, group_size=stored.group_size)


def check_divides(layer: Layer, config: ModelConfig, gpus: int, expert_parallel: bool = False) -> None:
    """UserError where vLLM cannot divide the layer so."""
    mixer, part = layer.mixer, layer.feed_forward
    heads = mixer.num_heads if isinstance(mixer, Attention | LatentAttention) else gpus
    inner = gpus if part is None or (expert_parallel and isinstance(part, Experts)) else part.inner
    if heads % gpus or inner % gpus:
        what = f"{config.num_attention_heads} heads and an inner width of {config.intermediate_size}"
        raise UserError(Problem("--tensor-parallel-size", f"must divide {what}", gpus, "1, 2, 4 or 8 as a rule"))
    kv_heads = mixer.num_kv_heads if isinstance(mixer, Attention) else gpus
    if kv_heads % gpus and gpus % kv_heads:
        raise UserError(Problem("--tensor-parallel-size", f"must divide {kv_heads} KV heads, or be a multiple", gpus))


def weights_of(
    config: ModelConfig, quantisation: str, tensor_parallel_size: int = 1, *, expert_parallel: bool = False
) -> Weights:
    """Bytes of the weights on one GPU.

    Where `quantisation` is the checkpoint's own, layer by layer as the checkpoint says; else every linear layer so.
    """
    element, gpus = config.element_bytes, tensor_parallel_size
    table = local_vocab(config, gpus) * config.hidden_size * element
    own = quantisation == config.quantisation
    layers = others = copies = 0
    for index, layer, count in kinds_of_layers(config, by_layer=own):
        if own:
            matrices = layer_matrices(config, gpus, index, expert_parallel=expert_parallel)
        else:
            check_divides(layer, config, gpus, expert_parallel)
            usual = layer.matrices(config.hidden_size, gpus, expert_parallel)
            matrices = [replace(matrix, group_size=config.group_size) for matrix in usual]
        layers += count * sum(matrix.bytes(quantisation) for matrix in matrices)
        others += count * layer.others(config.hidden_size, gpus) * element
        if isinstance(layer.mixer, LatentAttention):
            copies += count * layer.mixer.absorbed(gpus) * element
    return Weights(
        embeddings=table,
        head=0 if config.tie_word_embeddings else table,
        layers=layers,
        others=others + config.hidden_size * element,
        copies=copies,
        vision=vision_bytes(config, element, gpus),
    )


def kinds_of_layers(config: ModelConfig, *, by_layer: bool) -> list[tuple[int, Layer, int]]:
    """Layers that differ: the first one's index, the layer, and how many there are.

    `by_layer`: as the checkpoint stores them; one that excepts modules by name may store each in another way.
    """
    if by_layer and (config.checkpoint.ignored or config.checkpoint.named):
        return [(index, layer, 1) for index, layer in enumerate(config.layers)]
    return [(config.layers.index(layer), layer, count) for layer, count in config.distinct_layers]


def vision_bytes(config: ModelConfig, element: int, gpus: int = 1) -> int:
    """Bytes of a vision tower on one GPU, from its depth and widths: an estimate of 0.5 to 3 % of a model's bytes.

    Blocks of attention and two-layer MLPs, patches, and projectors to the decoder's width.
    """
    vision = config.vision
    if not vision:
        return 0

    def size(*names: str) -> int:
        return next((int(vision[name]) for name in names if isinstance(vision.get(name), int)), 0)

    depth = size("depth", "num_hidden_layers", "vt_num_hidden_layers")
    hidden = size("embed_dim", "hidden_size", "vt_hidden_size")
    inner = size("intermediate_size", "vt_intermediate_size") or 4 * hidden
    blocks = depth * (4 * hidden * hidden + 2 * hidden * inner)
    merged = hidden * max(1, size("spatial_merge_size")) ** 2
    projector = merged * merged + merged * config.hidden_size
    num_projectors = 1 + len(vision.get("deepstack_visual_indexes") or ())
    patch = 3 * size("patch_size") ** 2 * max(1, size("temporal_patch_size")) * hidden
    return (blocks // gpus + num_projectors * projector // gpus + patch) * element
