"""Length distributions: means, variation, bounds, and a trace's own lengths."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simbatch.sim.errors import UserError
from simbatch.sim.workload.lengths import length_draw
from simbatch.sim.workload.model import Workload


def draw(n: int = 200_000, folder: Path = Path(), **length: Any) -> Any:
    data = {"num_prompts": 1, "request_rate": 1, "prompt_len": length, "output_len": length}
    model = Workload.model_validate(data).prompt_len
    assert model is not None
    return length_draw(model, folder=folder, of="num_prompt_tokens")(np.random.default_rng(1), n)


def test_fixed() -> None:
    assert draw(3, distribution="fixed", mean=7).tolist() == [7, 7, 7]


def test_uniform_has_every_length_between_its_bounds() -> None:
    found = Counter(draw(distribution="uniform", min=3, max=7).tolist())
    assert set(found) == {3, 4, 5, 6, 7}
    assert all(n / 40_000 == pytest.approx(1, rel=0.05) for n in found.values())


def test_uniform_by_mean_and_cv() -> None:
    found = draw(distribution="uniform", mean=1000, cv=0.4)
    assert found.mean() == pytest.approx(1000, rel=0.01)
    assert found.std() / found.mean() == pytest.approx(0.4, rel=0.01)
    assert (found.min(), found.max()) == pytest.approx((1000 * (1 - 0.4 * 3**0.5), 1000 * (1 + 0.4 * 3**0.5)), rel=0.01)


@pytest.mark.parametrize("cv", [0.2, 0.8, 1.5])
def test_lognormal_has_exactly_this_mean_and_cv(cv: float) -> None:
    found = draw(500_000, distribution="lognormal", mean=800, cv=cv)
    assert found.mean() == pytest.approx(800, rel=0.01)
    assert found.std() / found.mean() == pytest.approx(cv, rel=0.05)
    assert np.log(found).std() == pytest.approx(np.sqrt(np.log(1 + cv**2)), rel=0.02)


def test_lognormal_without_variation_is_fixed() -> None:
    assert set(draw(100, distribution="lognormal", mean=800, cv=0)) == {800}


def test_draws_beyond_the_bounds_are_set_to_them_and_the_mean_is_before_that() -> None:
    found = draw(distribution="lognormal", mean=800, cv=1.0, min=100, max=1000)
    free = draw(distribution="lognormal", mean=800, cv=1.0)
    assert found.tolist() == np.clip(free, 100, 1000).tolist()
    assert (found == 1000).mean() == pytest.approx((free >= 1000).mean())
    assert found.mean() < 700


def test_no_length_is_below_one() -> None:
    assert draw(distribution="lognormal", mean=0.5, cv=2).min() == 1


def test_geometric_has_its_mean_and_probabilities() -> None:
    found = draw(distribution="geometric", mean=4)
    assert found.mean() == pytest.approx(4, rel=0.02)
    assert (found == 1).mean() == pytest.approx(0.25, rel=0.03)
    assert (found == 2).mean() == pytest.approx(0.1875, rel=0.03)


def test_empirical_draws_the_traces_own_lengths(tmp_path: Path) -> None:
    trace = "arrival_s,num_prompt_tokens,num_output_tokens\n0,10,1\n1,10,2\n2,30,3\n3,99,4\n"
    (tmp_path / "t.csv").write_text(trace)
    found = Counter(draw(80_000, tmp_path, distribution="empirical", path="t.csv", max=50).tolist())
    assert set(found) == {10, 30, 50}
    assert found[10] / 80_000 == pytest.approx(0.5, rel=0.03)
    assert found[50] / 80_000 == pytest.approx(0.25, rel=0.03)


def test_empirical_names_its_key_when_the_trace_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^workload\.prompt_len\.path: there is no such file"):
        draw(1, tmp_path, distribution="empirical", path="no.csv")
