"""What attention costs in layers that look at a window of the newest tokens, on the integer picosecond clock.

A decode after k computed tokens reads min(k, window) of them in such a layer, whatever k is:

    window 4, decodes after 2, 3 and 9 tokens: 2 + 3 + 4 = 9 tokens, a step later 3 + 4 + 4 = 11, then 12 for ever

Prompts are counted in the unit of the other layers, q * (2h + q) for q tokens after h: the same sum, where each token
looks back at no more than a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ATTENTION_SHIFT: Final = 20  # of attention coefficients: a few thousand ps per unit, multiplied by up to 1e9 units
HALF: Final = 524288  # 1 << (ATTENTION_SHIFT - 1), as a number that compiled code knows


@dataclass(frozen=True, slots=True)
class WindowCost:
    """Coefficients of all layers with a window of `size` tokens; `attention` keeps ATTENTION_SHIFT more bits."""

    size: int
    decode_ps: int  # a token inside a decode's window, in a decode-only step
    mixed_ps: int  # the same beside a prefill
    attention: int  # of a prompt's unit

    def added_ps(self, decode_window: int, prefill_tokens: int, prefill_window: int) -> int:
        """What they add to a step: `decode_window` tokens inside the windows of all decodes, units of its prompts."""
        if not prefill_tokens:
            return self.decode_ps * decode_window
        return self.mixed_ps * decode_window + ((self.attention * prefill_window + HALF) >> ATTENTION_SHIFT)

    def units(self, num_tokens: int, num_computed: int) -> int:
        """Of a prefill of so many tokens after so many others: q * (2h + q) while it is inside the window."""
        return self._square(num_computed + num_tokens) - self._square(num_computed)

    def alike(self, num_decodes: int, context: int) -> int:
        """Tokens inside the windows of decodes that have as much context each."""
        return min(context, num_decodes * self.size)

    def _square(self, length: int) -> int:
        """Of a sequence: its square, and from the window on a straight line."""
        size = self.size
        return length * length if length <= size else size * (2 * length - size)
