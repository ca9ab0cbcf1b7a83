"""The picture of docs/one-step.md: its steps obey the rule that the page states, and it can be drawn."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.one_step import FIRST_PREFILL, NUM_STEPS, SCENARIO, main


def test_the_steps_of_the_picture_obey_the_rule_of_the_page(tmp_path: Path) -> None:
    window = main(tmp_path / "one-step.png")
    assert len(window) == NUM_STEPS
    assert window[FIRST_PREFILL].num_prompts > 0
    host = SCENARIO["profile"]["host"]
    for life in window:
        assert life.launched - life.schedule >= 1000 * host["launch"]["graph"]["base_s"]
        assert life.start >= life.schedule + 1000 * host["lag_s"] - 1e-9
        assert life.end >= life.launched + 1000 * host["tail_s"] - 1e-9
        assert life.updating >= life.end - 1e-9
        assert life.sent > life.sending >= life.updated
    for life, following in pairwise(window):
        assert life.updating >= following.launched - 1e-9  # tokens wait for the next launch
        assert following.start >= life.end - 1e-9
        assert following.sending >= life.sent
    for life, _, after_next in zip(window, window[1:], window[2:], strict=False):
        assert after_next.schedule == pytest.approx(life.updated)  # a queue of two
    with Image.open(tmp_path / "one-step.png") as image:
        image.load()
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20
