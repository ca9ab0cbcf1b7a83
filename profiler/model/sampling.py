"""What sampling adds to a step, beside the head: the same for kernel tables, which leave it out, and the roofline."""

from __future__ import annotations

SAMPLER_S, SAMPLER_SEQ_S = 30e-6, 0.6e-6
# Random sampling (top-k and top-p sort the vocabulary) on top of that, on an H100: between the kernels and published
# servers of 128,256 and 151,936 tokens 19 to 26 us a sequence are missing. Elsewhere by the memory's bandwidth.
RANDOM_LOGIT_S, RANDOM_BANDWIDTH = 22e-6 / 128_256, 3.35e12


def random_seq_s(vocab_size: int, bandwidth_bytes_per_s: float) -> float:
    """What drawing a token at a temperature above 0 takes for each sequence, s."""
    return RANDOM_LOGIT_S * vocab_size * RANDOM_BANDWIDTH / bandwidth_bytes_per_s
