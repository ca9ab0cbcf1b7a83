"""What a workload may say, and what each mistake is told."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from simbatch.sim.workload.model import Workload

FIXED = {"distribution": "fixed", "mean": 10}
BASE: dict[str, Any] = {"num_prompts": 10, "request_rate": 2, "prompt_len": FIXED, "output_len": FIXED}


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in BASE.items() if key not in keys}


def arrival(**settings: Any) -> dict[str, Any]:
    return {**without("request_rate"), "arrival": settings}


def test_contracts_example_is_taken() -> None:
    workload = Workload.model_validate(
        {
            "num_prompts": 2000,
            "request_rate": 3,
            "burstiness": 0.25,
            "prompt_len": {"distribution": "lognormal", "mean": 800, "cv": 1.0, "max": 4096},
            "output_len": {"distribution": "lognormal", "mean": 200, "cv": 0.8},
            "priorities": {"high": 0.1, "normal": 0.9},
        }
    )
    assert workload.priority_shares() == [(0, 0.1), (1, 0.9)]
    process = workload.resolved_arrival()
    assert (process.process, process.request_rate, process.burstiness) == ("gamma", 3.0, 0.25)


@pytest.mark.parametrize(
    "settings",
    [
        {"process": "gamma", "request_rate": 2, "burstiness": 0.5, "rescale": False},
        {"process": "poisson", "request_rate": 2},
        {"process": "constant", "request_rate": 2},
        {"process": "all_at_once"},
        {"process": "on_off", "request_rate": 2, "on_s": 5, "off_s": 10},
        {"process": "ramp", "ramp_up_strategy": "linear", "ramp_up_start_rps": 1, "ramp_up_end_rps": 4},
        {"process": "daily", "request_rate": 2, "amplitude": 0.9},
        {"process": "closed_loop", "max_concurrency": 4, "think_time_s": 1},
    ],
    ids=lambda settings: str(settings["process"]),
)
def test_every_process_is_taken_and_survives_a_dump(settings: dict[str, Any]) -> None:
    workload = Workload.model_validate(arrival(**settings))
    dumped = workload.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    assert dumped["arrival"]["process"] == settings["process"]
    assert Workload.model_validate(dumped) == workload


def test_the_rate_may_stand_beside_the_process() -> None:
    workload = Workload.model_validate({**BASE, "arrival": {"process": "constant"}})
    assert workload.resolved_arrival().request_rate == 2


def test_integer_priorities_survive_a_dump() -> None:
    workload = Workload.model_validate({**BASE, "priorities": {0: 0.5, -3: 0.25, "low": 0.25}})
    assert workload.priority_shares() == [(-3, 0.25), (0, 0.5), (2, 0.25)]
    again = Workload.model_validate(workload.model_dump(mode="json", exclude_none=True))
    assert again.priority_shares() == workload.priority_shares()


ERRORS: list[tuple[str, dict[str, Any], tuple[str | int, ...], str]] = [
    ("nothing", {}, (), "needs num_prompts, request_rate, prompt_len and output_len, or a trace"),
    ("no count", without("num_prompts"), ("num_prompts",), "Field required"),
    ("no rate", without("request_rate"), ("request_rate",), "Field required"),
    ("no lengths", without("prompt_len"), ("prompt_len",), "Field required"),
    ("both", {**BASE, "trace": {"path": "x.csv"}}, ("num_prompts",), "a trace brings its own arrivals"),
    ("rate of 0", {**BASE, "request_rate": 0}, ("request_rate",), "greater than 0"),
    ("rate is NaN", {**BASE, "request_rate": float("nan")}, ("request_rate",), "finite"),
    ("rate below every number", {**BASE, "request_rate": float("-inf")}, ("request_rate",), "finite"),
    ("rate is true", {**BASE, "request_rate": True}, ("request_rate",), "valid number"),
    ("rate is text", {**BASE, "request_rate": "3"}, ("request_rate",), "valid number"),
    ("count is 2.5", {**BASE, "num_prompts": 2.5}, ("num_prompts",), "valid integer"),
    ("no burstiness", {**BASE, "burstiness": 0}, ("burstiness",), "greater than 0"),
    ("unknown key", {**BASE, "request_rates": 3}, ("request_rates",), "Extra inputs"),
    ("shares", {**BASE, "priorities": {"high": 0.5, "low": 0.4}}, ("priorities",), "sum to 1, and sum to 0.9"),
    ("class name", {**BASE, "priorities": {"urgent": 1}}, ("priorities",), "'urgent' must be high, normal, low"),
    ("class twice", {**BASE, "priorities": {"high": 0.5, 0: 0.5}}, ("priorities",), "0 is given twice"),
    ("negative share", {**BASE, "priorities": {"high": -1, "low": 2}}, ("priorities", "high"), "greater than or equal"),
    ("unknown process", arrival(process="burst"), ("arrival",), "does not match any of the expected tags"),
    ("process without rate", arrival(process="constant"), ("arrival",), "needs request_rate"),
    ("loop without users", arrival(process="closed_loop"), ("arrival",), "needs max_concurrency"),
    (
        "rate twice",
        {**BASE, "arrival": {"process": "constant", "request_rate": 3}},
        ("request_rate",),
        "stands both here and in arrival.request_rate",
    ),
    (
        "burstiness of a constant",
        {**BASE, "burstiness": 2, "arrival": {"process": "constant"}},
        ("burstiness",),
        "arrival process constant has no burstiness",
    ),
    (
        "rate of all at once",
        {**BASE, "arrival": {"process": "all_at_once"}},
        ("request_rate",),
        "all_at_once has no request_rate",
    ),
    (
        "peak after the day",
        arrival(process="daily", request_rate=1, period_s=10, peak_s=11),
        ("arrival", "daily", "peak_s"),
        "at most period_s",
    ),
    (
        "ramp from 0",
        arrival(process="ramp", ramp_up_start_rps=0, ramp_up_end_rps=2),
        ("arrival", "ramp", "ramp_up_start_rps"),
        "greater than 0",
    ),
    (
        "fixed and fractional",
        {**BASE, "prompt_len": {"distribution": "fixed", "mean": 1.5}},
        ("prompt_len", "fixed", "mean"),
        "whole number of tokens",
    ),
    (
        "fixed with cv",
        {**BASE, "prompt_len": {"distribution": "fixed", "mean": 1, "cv": 1}},
        ("prompt_len", "fixed", "cv"),
        "Extra inputs",
    ),
    (
        "uniform without bounds",
        {**BASE, "prompt_len": {"distribution": "uniform", "min": 3}},
        ("prompt_len", "uniform", "max"),
        "Field required",
    ),
    (
        "uniform upside down",
        {**BASE, "prompt_len": {"distribution": "uniform", "min": 3, "max": 2}},
        ("prompt_len", "uniform", "min"),
        "at most max",
    ),
    (
        "uniform too wide",
        {**BASE, "prompt_len": {"distribution": "uniform", "mean": 3, "cv": 0.6}},
        ("prompt_len", "uniform", "cv"),
        "0.577",
    ),
    (
        "uniform says too much",
        {**BASE, "prompt_len": {"distribution": "uniform", "mean": 3, "cv": 0.1, "min": 1, "max": 4}},
        ("prompt_len", "uniform", "cv"),
        "already give the width",
    ),
    (
        "uniform's mean elsewhere",
        {**BASE, "prompt_len": {"distribution": "uniform", "mean": 3, "min": 1, "max": 4}},
        ("prompt_len", "uniform", "mean"),
        "middle of min and max (2.5)",
    ),
    (
        "lognormal without cv",
        {**BASE, "prompt_len": {"distribution": "lognormal", "mean": 3}},
        ("prompt_len", "lognormal", "cv"),
        "Field required",
    ),
    (
        "azure's time unit",
        {"trace": {"path": "x", "format": "azure", "time_unit": "ms"}},
        ("trace", "time_unit"),
        "no other",
    ),
    (
        "azure's hashes",
        {"trace": {"path": "x", "format": "azure", "hash_block_tokens": 16}},
        ("trace", "hash_block_tokens"),
        "has no hash_ids",
    ),
    ("trace without path", {"trace": {"format": "azure"}}, ("trace", "path"), "Field required"),
    ("unknown format", {"trace": {"path": "x", "format": "azur"}}, ("trace", "format"), "Input should be"),
    ("limit of 0", {"trace": {"path": "x", "limit": 0}}, ("trace", "limit"), "greater than or equal to 1"),
    ("repeat", {"trace": {"path": "x", "repeat": 2}}, ("trace", "repeat"), "Extra inputs"),
    ("empty prefix", {**BASE, "prefix": {"prefix_len": 0}}, ("prefix", "prefix_len"), "greater than or equal to 1"),
]


@pytest.mark.parametrize(("data", "place", "rule"), [error[1:] for error in ERRORS], ids=[error[0] for error in ERRORS])
def test_a_mistake_is_shown_at_its_key(data: dict[str, Any], place: tuple[str | int, ...], rule: str) -> None:
    check_mistake(data, place, rule)


def check_mistake(data: dict[str, Any], place: tuple[str | int, ...], rule: str) -> None:
    """A workload that is refused at `place` by a rule with these words."""
    with pytest.raises(ValidationError) as caught:
        Workload.model_validate(data)
    found = {error["loc"]: error["msg"] for error in caught.value.errors(include_url=False)}
    assert place in found
    assert rule in found[place]
