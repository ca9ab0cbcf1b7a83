"""How weights are stored: bytes of a matrix under each quantisation, and what a checkpoint says of its own.

Only the linear layers are quantised; embeddings, norms, biases and the head stay as published.

    awq, gptq   int4 in groups of inputs: half a byte a weight, one 16-bit scale and one int4 zero a group and output
                (gptq in the order of activations keeps an int32 group index an input as well: not counted)
    int4        the same without zeros (symmetric: compressed-tensors W4A16)
    int8        W8A8: one byte a weight, one fp32 scale an output
    fp8         the same (one scale a matrix instead of one an output is 0.06 % less)
    fp8_block   one byte a weight, one fp32 scale per 128 x 128 of them
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simbatch.sim.errors import Problem, UserError

UNQUANTISED = ("bf16", "fp16", "fp32")
QUANTISED = ("awq", "gptq", "int4", "int8", "fp8", "fp8_block")
GROUP = 128
WHOLE_COLUMN = 2**31
BLOCK = 128
SCALE_BYTES, HALF_SCALE_BYTES = 4, 2
_KEPT = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0}


def matrix_bytes(num_inputs: int, num_outputs: int, quantisation: str, group_size: int = GROUP) -> int:
    """Bytes of a linear layer's weights with their scales and zeros; `group_size`: inputs that share a scale (int4)."""
    weights = num_inputs * num_outputs
    if quantisation in _KEPT:
        return int(weights * _KEPT[quantisation])
    if quantisation in ("awq", "gptq", "int4"):
        groups = -(-num_inputs // group_size) * num_outputs
        zeros = 0 if quantisation == "int4" else -(-groups // 2)
        return -(-weights // 2) + groups * HALF_SCALE_BYTES + zeros
    if quantisation == "fp8_block":
        return weights + -(-num_inputs // BLOCK) * -(-num_outputs // BLOCK) * SCALE_BYTES
    return weights + num_outputs * SCALE_BYTES


def compute_dtype(quantisation: str) -> str:
    """The type that the matrix products run in: int4 weights are turned to 16 bits first (weight-only)."""
    return {"fp8": "fp8", "fp8_block": "fp8", "int8": "int8"}.get(quantisation, "bf16")


def checked_quantisation(quantisation: str, place: str = "--quantization") -> str:
    """The same name; UserError when it is none that is known."""
    if quantisation not in UNQUANTISED + QUANTISED:
        raise UserError(Problem(place, f"must be one of {', '.join(UNQUANTISED + QUANTISED)}", quantisation))
    return quantisation


def quantisation_of(content: Mapping[str, Any] | None, place: str) -> str | None:
    """What a checkpoint's `quantization_config` means, in the words above; None without one.

    Raises UserError for a method that is not known.
    """
    if content is None:
        return None
    if not isinstance(content, Mapping):
        raise UserError(Problem(place, "must be an object with keys", content))
    method, bits = content.get("quant_method"), content.get("bits")
    if method in ("awq", "gptq") and bits in (4, None):
        return str(method)
    if method == "fp8":
        return "fp8_block" if content.get("weight_block_size") else "fp8"
    if method == "compressed-tensors" and (found := _compressed(content)) is not None:
        return found
    rule = "only awq and gptq in 4 bits, fp8, and compressed-tensors in int4, int8 and fp8 are known"
    raise UserError(Problem(place, rule, {"quant_method": method, "bits": bits}))


def group_size_of(content: Mapping[str, Any] | None, place: str) -> int:
    """Inputs that share a scale in int4, as a checkpoint's `quantization_config` says; -1 there is a whole column."""
    content = content or {}
    size = content.get("group_size", _weights(content).get("group_size"))
    if size is None:
        return GROUP
    if isinstance(size, bool) or not isinstance(size, int) or size == 0 or size < -1:
        raise UserError(Problem(f"{place} group_size", "must be a whole number above 0, or -1", size))
    return size if size > 0 else WHOLE_COLUMN


def _compressed(content: Mapping[str, Any]) -> str | None:
    weights = _weights(content)
    kind = (weights.get("type"), weights.get("num_bits"))
    if kind == ("float", 8):
        return "fp8_block" if weights.get("strategy") == "block" else "fp8"
    return {("int", 4): "int4", ("int", 8): "int8"}.get(kind)  # type: ignore[arg-type]


def _weights(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What compressed-tensors says of the weights of its first group of layers."""
    groups = content.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    return weights if isinstance(weights, Mapping) else {}
