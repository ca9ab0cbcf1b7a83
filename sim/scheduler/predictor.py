"""A predictor of output lengths whose error is stated: the one way in which a policy learns of what is to come."""

from __future__ import annotations

from hashlib import blake2b
from math import exp
from statistics import NormalDist

_NORMAL = NormalDist()


def predicted_length(request_id: str, num_output_tokens: int, error: float, seed: int) -> float:
    """What the predictor says, tokens, at least 1: the true length times exp(error * z).

    z is standard normal, the same for a request whenever it is asked (by its name and the seed), so `error` is the
    standard deviation of ln(predicted / true); the median prediction is right. 0 is an oracle.
    """
    if not error:
        return float(num_output_tokens)
    drawn = int.from_bytes(blake2b(f"{seed}:{request_id}".encode(), digest_size=7).digest())
    return max(num_output_tokens * exp(error * _NORMAL.inv_cdf((drawn + 0.5) / 2**56)), 1.0)
