"""How weights are stored: bytes of a matrix under each quantisation.

Only linear layers are quantised, and of them those that a checkpoint does not except; embeddings, norms, biases,
routers and the head stay as published.

    awq, gptq   int4 in groups of inputs: half a byte a weight, one 16-bit scale and one int4 zero a group and output
                (gptq in the order of activations keeps an int32 group index an input as well: not counted)
    gptq8       the same in one byte a weight
    int4        as awq without zeros (symmetric: compressed-tensors W4A16); int4_zeros: with them
    int8        W8A8: one byte a weight, one fp32 scale an output; int8_group: a 16-bit scale a group (W8A16)
    fp8         one byte a weight, one fp32 scale an output (one a matrix instead is 0.06 % less)
    fp8_block   one byte a weight, one fp32 scale per 128 x 128 of them
    nvfp4       half a byte a weight, one fp8 scale for 16 inputs; mxfp4, mxfp8: one byte of scale for 32
    bitsandbytes  NF4: half a byte a weight, one fp32 scale for 64
"""

from __future__ import annotations

from typing import NamedTuple

from simbatch.sim.errors import Problem, UserError

UNQUANTISED = ("bf16", "fp16", "fp32")
GROUP = 128
WHOLE_COLUMN = 2**31
BLOCK = 128
_KEPT = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0}


class StorageFormat(NamedTuple):
    """One storage format: bits of a weight, then of what a group of inputs adds for each output."""

    weight_bits: int
    scale_bytes: int
    zero_bits: int = 0
    group: int | None = None  # None: the checkpoint's own


FORMATS = {
    "awq": StorageFormat(4, 2, 4),
    "gptq": StorageFormat(4, 2, 4),
    "gptq8": StorageFormat(8, 2, 8),
    "int4": StorageFormat(4, 2),
    "int4_zeros": StorageFormat(4, 2, 4),
    "int8": StorageFormat(8, 4, group=WHOLE_COLUMN),
    "int8_group": StorageFormat(8, 2),
    "fp8": StorageFormat(8, 4, group=WHOLE_COLUMN),
    "fp8_block": StorageFormat(8, 4, group=BLOCK),
    "nvfp4": StorageFormat(4, 1, group=16),
    "mxfp4": StorageFormat(4, 1, group=32),
    "mxfp8": StorageFormat(8, 1, group=32),
    "bitsandbytes": StorageFormat(4, 4, group=64),
}
QUANTISED = tuple(FORMATS)
AUTO_ROUND = ("auto-round", "auto_round", "intel/auto-round", "inc")  # Intel's, packed as gptq
# What else vLLM's --quantization calls them.
ALIASES = {
    "awq_marlin": "awq",
    "auto_awq": "awq",
    "gptq_marlin": "gptq",
    "auto_gptq": "gptq",
    "fbgemm_fp8": "fp8",
    "ptpc_fp8": "fp8",
    "modelopt": "fp8",
    "modelopt_fp4": "nvfp4",
    "modelopt_mxfp8": "mxfp8",
    "gpt_oss_mxfp4": "mxfp4",
    "experts_int8": "int8",
    **dict.fromkeys(AUTO_ROUND, "gptq"),
    "moe_wna16": "awq",
    "fp8_per_tensor": "fp8",
    "fp8_per_channel": "fp8",
    "fp8_per_block": "fp8_block",
    "int8_per_channel_weight_only": "int8",
    "nvfp4_per_token": "nvfp4",
}


def matrix_bytes(num_inputs: int, num_outputs: int, quantisation: str, group_size: int = GROUP) -> int:
    """Bytes of a linear layer's weights with their scales and zeros; `group_size`: inputs that share a scale (int4)."""
    weights = num_inputs * num_outputs
    if quantisation in _KEPT:
        return int(weights * _KEPT[quantisation])
    form = FORMATS[quantisation]
    groups = -(-num_inputs // (form.group or group_size)) * num_outputs
    if quantisation == "fp8_block":
        groups = -(-num_inputs // BLOCK) * -(-num_outputs // BLOCK)
    return -(-weights * form.weight_bits // 8) + groups * form.scale_bytes + -(-groups * form.zero_bits // 8)


def compute_dtype(quantisation: str) -> str:
    """The type that the matrix products run in: weights of 4 bits but nvfp4 are turned to 16 first (weight-only)."""
    kinds = {"fp8": "fp8", "fp8_block": "fp8", "mxfp8": "fp8", "int8": "int8", "nvfp4": "fp4"}
    return kinds.get(quantisation, "bf16")


def is_weight_only_4_bits(quantisation: str) -> bool:
    """Whether weights of 4 bits are turned to 16 inside the product."""
    return quantisation in FORMATS and FORMATS[quantisation].weight_bits == 4 and compute_dtype(quantisation) == "bf16"


def checked_quantisation(quantisation: str, place: str = "--quantization") -> str:
    """Our name for it, where vLLM has several; UserError when it is none that is known."""
    name = ALIASES.get(quantisation.lower(), quantisation.lower())
    if name == "compressed-tensors":
        rule = "is a way to write a checkpoint, not a type of weights"
        mend = "leave it out where config.json says it, or write int4 or fp8"
        raise UserError(Problem(place, rule, quantisation, mend))
    if name not in UNQUANTISED + QUANTISED:
        raise UserError(Problem(place, f"must be one of {', '.join(UNQUANTISED + QUANTISED)}", quantisation))
    return name
