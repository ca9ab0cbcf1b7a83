"""How vLLM lays a model's KV cache out: pages of layers, groups of layers that share blocks, and blocks of a request.

A layer's page holds one block of tokens (or one state). Layers that need the same blocks form a group; groups of
different kinds have the same number of layers, and pages of one size, so that any block serves any group. A block thus
takes one page of each layer of the largest group:

    Gemma 3 27B: 10 full layers and 52 with a window -> a group of 10 full and 6 of up to 10 with windows; a block is 10
    pages, and a request of 32,768 tokens takes 2,048 blocks in the first group and 193 in each of the others.

As `get_kv_cache_groups` and `get_kv_cache_config_from_groups` do it (vllm/v1/core/kv_cache_utils.py, vLLM 0.32) in the
layouts of its GPU backends, where blocks are not outermost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.model.config import ModelConfig
from simbatch.profiler.model.mixers import Kept
from simbatch.sim.errors import Problem, UserError

Ints = NDArray[np.int64]
BLOCK_SIZE, LATENT_BLOCK_SIZE = 16, 64  # FlashMLA's kernels read 64 tokens
KERNEL_BLOCK_SIZE = 16
# Bits of a key's and of a value's number, and bytes for each key and each value. TurboQuant keeps a norm of 2 bytes for
# a key, scale and zero for a value.
PACKED = {
    "int8_per_token_head": (8, 8, 4, 4),
    "fp8_per_token_head": (8, 8, 4, 4),
    "int4_per_token_head": (4, 4, 4, 4),
    "turboquant_k8v4": (8, 4, 0, 4),
    "turboquant_4bit_nc": (4, 4, 2, 4),
    "turboquant_k3v4_nc": (3, 4, 2, 4),
    "turboquant_3bit_nc": (3, 3, 2, 4),
}
LATENT_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
WITH_SCALES = ("nvfp4", "nvfp4_4over6")  # half a byte a number, a byte of scale for 16
ONE_BYTE = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc")
TWO_BYTES = ("float16", "bfloat16")
KV_TYPES = ("auto", *TWO_BYTES, *ONE_BYTE, *WITH_SCALES, *PACKED, "ultraquant_4bit", *LATENT_BYTES)


class Page(NamedTuple):
    """What one layer keeps in a block: of so many tokens, or one state."""

    kind: Literal["full", "sliding", "state"]
    block_size: int
    page_bytes: int
    window: int | None = None
    checkpoints: int = 0
    shape: tuple[int, int, int, str] = (0, 0, 0, "")  # heads, keys, values, form: layers that differ share no group


@dataclass(frozen=True)
class KVGroup:
    """Layers that share blocks."""

    page: Page
    num_layers: int

    def held_by(self, num_tokens: Ints) -> Ints:
        """What requests hold that decode with so many tokens computed."""
        if self.page.kind == "state":
            return np.full_like(num_tokens, 1 + self.page.checkpoints)
        whole = -(-num_tokens // self.page.block_size)
        if self.page.kind == "full" or self.page.window is None:
            return whole
        return np.minimum(whole, ceil(self.page.window / self.page.block_size) + 1)

    def blocks_of(self, num_tokens: int, in_flight_tokens: int, states: int) -> int:
        """What one request of so many tokens takes at most; `in_flight_tokens` are scheduled and not yet settled."""
        if self.page.kind == "state":
            return states + self.page.checkpoints
        if self.page.kind == "full" or self.page.window is None:
            return ceil(num_tokens / self.page.block_size)
        held = min(self.page.window - 1 + in_flight_tokens, num_tokens)
        return ceil(held / self.page.block_size) + 1  # a window need not begin where a block does


@dataclass(frozen=True)
class KVLayout:
    """All groups; `block_size` is that of full attention, `bytes_per_block` what a block takes in all layers.

    `max_num_batched_tokens` and `batches` (2 where the next batch is scheduled before one has ended) say how much is in
    flight, `states` how many states of Mamba or linear attention a request has (2 with prefix caching).
    """

    groups: tuple[KVGroup, ...]
    block_size: int
    bytes_per_block: int
    in_flight_tokens: int
    states: int

    def num_blocks(self, kv_cache_bytes: int) -> int:
        """Whole blocks that the bytes make, none below zero."""
        return max(0, kv_cache_bytes // self.bytes_per_block)

    def blocks_of(self, num_tokens: int) -> int:
        """What one request of so many tokens takes in all groups."""
        return sum(group.blocks_of(num_tokens, self.in_flight_tokens, self.states) for group in self.groups)

    def held_by(self, num_tokens: Ints) -> Ints:
        """What requests hold in all groups that decode with so many tokens computed."""
        held: Ints = np.sum([group.held_by(num_tokens) for group in self.groups], axis=0)
        return held

    def tokens(self, num_blocks: int, max_model_len: int) -> int:
        """The `GPU KV cache size` that vLLM logs: requests of `max_model_len` that fit, times their length."""
        return int(num_blocks / self.blocks_of(max_model_len) * max_model_len)

    @property
    def smallest_block_size(self) -> int:
        """Of all groups."""
        return min(group.page.block_size for group in self.groups)

    @property
    def is_uniform(self) -> bool:
        """Whether there is one group, whose requests hold blocks for all their tokens."""
        return len(self.groups) == 1 and self.groups[0].page.kind == "full"

    def bytes_per_token(self, max_model_len: int) -> int:
        """Of a request of `max_model_len`, on average; the same for every length where the layout is uniform."""
        if self.is_uniform:
            return self.bytes_per_block // self.block_size
        return ceil(self.bytes_per_block * self.blocks_of(max_model_len) / max_model_len)


def kv_layout(
    config: ModelConfig,
    kv_cache_dtype: str = "auto",
    tensor_parallel_size: int = 1,
    block_size: int | None = None,
    *,
    max_num_batched_tokens: int = 2048,
    batches: int = 2,
    states: int = 2,
    has_checkpoints: bool = True,
) -> KVLayout:
    """The layout on one GPU; UserError for a KV type that is not known or does not suit the model."""
    stored = stored_kv_type(config, kv_cache_dtype)
    size = block_size or (LATENT_BLOCK_SIZE if config.has_latent_attention else BLOCK_SIZE)
    kept = [one for layer in config.layers for one in layer.kept(tensor_parallel_size)]
    token_bytes = [_token_bytes(one, stored, config.element_bytes) for one in kept]
    if not kept:
        raise UserError(Problem("config.json", "keeps nothing of its tokens: there is no KV cache to plan"))
    size = _aligned(kept, token_bytes, size, config.has_latent_attention)
    pages = [_page(one, bytes_of, size, has_checkpoints) for one, bytes_of in zip(kept, token_bytes, strict=True)]
    groups, per_block = _grouped(pages)
    return KVLayout(groups, size, per_block, batches * max_num_batched_tokens, states)


def stored_kv_type(config: ModelConfig, kv_cache_dtype: str) -> str:
    """The flag, or what the checkpoint says where it is auto; UserError for a type that is not vLLM's."""
    if kv_cache_dtype not in KV_TYPES:
        raise UserError(Problem("--kv-cache-dtype", f"must be one of {', '.join(KV_TYPES)}", kv_cache_dtype))
    if kv_cache_dtype in LATENT_BYTES and not config.has_latent_attention:
        raise UserError(
            Problem(
                "--kv-cache-dtype", "is for models with MLA only", kv_cache_dtype, "take fp8, or nvfp4 on Blackwell"
            )
        )
    stored = (config.checkpoint.kv_cache_dtype or "auto") if kv_cache_dtype == "auto" else kv_cache_dtype
    is_sparse = any(kept.form == "indexer" for layer in config.layers for kept in layer.kept())
    return "fp8_ds_mla" if is_sparse and stored in ONE_BYTE else stored  # sparse MLA's own fp8 (flashmla_sparse.py)


def _token_bytes(kept: Kept, kv_cache_dtype: str, element_bytes: int) -> int:
    """Bytes of one token in one layer."""
    if kept.kind == "state":
        return 0
    if kept.form == "indexer":  # in fp8 whatever the type
        return kept.keys
    sides = (kept.keys, kept.values)
    if kept.form == "mla" and kv_cache_dtype in LATENT_BYTES:
        return LATENT_BYTES[kv_cache_dtype]
    if kv_cache_dtype in ONE_BYTE:
        return kept.heads * sum(sides)
    if kv_cache_dtype in WITH_SCALES:
        return kept.heads * sum(side // 2 + side // 16 for side in sides)
    if kv_cache_dtype == "ultraquant_4bit":
        return kept.heads * sum(side // 2 + side // 32 for side in sides)
    if kv_cache_dtype in PACKED:
        key_bits, value_bits, key_more, value_more = PACKED[kv_cache_dtype]
        slot = ceil(kept.keys * key_bits / 8) + key_more + ceil(kept.values * value_bits / 8) + value_more
        return kept.heads * (slot + slot % 2)
    return kept.heads * sum(sides) * (element_bytes if kv_cache_dtype == "auto" else 2)


def _aligned(kept: Sequence[Kept], token_bytes: Sequence[int], block_size: int, has_latent: bool) -> int:
    """The block size of attention, raised until its page holds a state (platforms/interface.py)."""
    largest = max((one.state_bytes for one in kept if one.kind == "state"), default=0)
    per_token = max(token_bytes)
    if not largest or not per_token:
        return block_size
    step = max(KERNEL_BLOCK_SIZE, block_size, 128 if has_latent else 0)
    needed = step * ceil(largest / (step * per_token))
    return max(block_size, KERNEL_BLOCK_SIZE * ceil(needed / KERNEL_BLOCK_SIZE))


def _page(kept: Kept, token_bytes: int, block_size: int, with_checkpoints: bool) -> Page:
    shape = (kept.heads, kept.keys, kept.values, kept.form)
    if kept.kind == "state":
        return Page("state", block_size, kept.state_bytes, checkpoints=kept.checkpoints * with_checkpoints)
    if kept.kind == "sliding":
        return Page("sliding", block_size, token_bytes * block_size, kept.window, shape=shape)
    return Page("full", block_size, token_bytes * block_size, shape=shape)  # chunks are kept whole (config/vllm.py)


def _grouped(pages: Sequence[Page]) -> tuple[tuple[KVGroup, ...], int]:
    """The groups, and a block's bytes in all layers."""
    kinds = {(page.kind, page.window) for page in pages}
    if len(kinds) == 1 and (pages[0].kind != "state" or len({page.page_bytes for page in pages}) == 1):
        total = sum(page.page_bytes for page in pages)  # one group, whatever the layers' shapes
        return (KVGroup(pages[0], len(pages)),), total
    pages = _one_page_size(pages)
    layers = Counter(pages)
    smallest, largest = min(layers.values()), max(layers.values())
    # a little more of one kind than of the other: padding the smaller is cheaper than another group
    size = largest if largest < 1.5 * smallest else smallest
    groups = [KVGroup(page, size) for page, number in layers.items() for _ in range(ceil(number / size))]
    return tuple(groups), size * pages[0].page_bytes


def _one_page_size(pages: Sequence[Page]) -> list[Page]:
    """All pages as large as the largest: by more tokens in a block where that goes without a rest, else by padding."""
    largest = max(page.page_bytes for page in pages)

    def raised(page: Page) -> Page:
        if page.kind != "state" and largest % page.page_bytes == 0:
            return page._replace(page_bytes=largest, block_size=page.block_size * (largest // page.page_bytes))
        return page._replace(page_bytes=largest)

    return [raised(page) for page in pages]
