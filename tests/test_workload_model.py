"""What a workload may say, and what each mistake is told; shares of tenants, and mixes of traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from simbatch import Scenario, UserError, simulate
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.search.cells import cells_of
from simbatch.sim.search.loads import at_rate, rates_of
from simbatch.sim.workload import RequestSource, open_workload
from simbatch.sim.workload.chunk import CHUNK_SIZE
from simbatch.sim.workload.model import Workload
from tests.made_scenarios import fixed, uniform

BASE: dict[str, Any] = {"num_prompts": 10, "request_rate": 2, "prompt_len": fixed(10), "output_len": fixed(10)}
DRAWN: dict[str, Any] = {
    "num_prompts": 2000,
    "request_rate": 5,
    "prompt_len": {"distribution": "lognormal", "mean": 300, "cv": 1},
    "output_len": uniform(1, 50),
}
PROFILE = {"num_gpu_blocks": 2000, "step_time": {"base_s": 0.01}}
COLUMNS = ("arrival_ps", "num_prompt_tokens", "num_output_tokens", "priority", "hash_ids")


def without(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


CHAT = {**DRAWN, "tenant": "chat", "num_prompts": 200, "request_rate": 2}
BATCH = {
    **without(DRAWN, "request_rate"),
    "tenant": "batch",
    "num_prompts": 300,
    "arrival": {"process": "on_off", "request_rate": 10, "on_s": 5, "off_s": 15},
    "priority": "low",
}


def arrival(process: str, **settings: Any) -> dict[str, Any]:
    return {**without(BASE, "request_rate"), "arrival": {"process": process, **settings}}


def prompts(distribution: str, **settings: Any) -> dict[str, Any]:
    return {**BASE, "prompt_len": {"distribution": distribution, **settings}}


def traced(**settings: Any) -> dict[str, Any]:
    return {"trace": {"path": "x", **settings}}


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
    workload = Workload.model_validate({**without(BASE, "request_rate"), "arrival": settings})
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


ERRORS: dict[str, tuple[dict[str, Any], str, str]] = {  # what is said, its place, and words of the rule
    "nothing": ({}, "", "needs num_prompts, request_rate, prompt_len and output_len, or a trace"),
    "no count": (without(BASE, "num_prompts"), "num_prompts", "Field required"),
    "no rate": (without(BASE, "request_rate"), "request_rate", "Field required"),
    "no lengths": (without(BASE, "prompt_len"), "prompt_len", "Field required"),
    "both": (BASE | traced(), "num_prompts", "a trace brings its own arrivals"),
    "rate of 0": (BASE | {"request_rate": 0}, "request_rate", "greater than 0"),
    "rate is NaN": (BASE | {"request_rate": float("nan")}, "request_rate", "finite"),
    "rate below every number": (BASE | {"request_rate": float("-inf")}, "request_rate", "finite"),
    "rate is true": (BASE | {"request_rate": True}, "request_rate", "valid number"),
    "rate is text": (BASE | {"request_rate": "3"}, "request_rate", "valid number"),
    "count is 2.5": (BASE | {"num_prompts": 2.5}, "num_prompts", "valid integer"),
    "no burstiness": (BASE | {"burstiness": 0}, "burstiness", "greater than 0"),
    "unknown key": (BASE | {"request_rates": 3}, "request_rates", "Extra inputs"),
    "shares": (BASE | {"priorities": {"high": 0.5, "low": 0.4}}, "priorities", "sum to 1, and sum to 0.9"),
    "class name": (BASE | {"priorities": {"urgent": 1}}, "priorities", "'urgent' must be high, normal, low"),
    "class twice": (BASE | {"priorities": {"high": 0.5, 0: 0.5}}, "priorities", "0 is given twice"),
    "negative share": (BASE | {"priorities": {"high": -1, "low": 2}}, "priorities.high", "greater than or equal"),
    "unknown process": (arrival("burst"), "arrival", "does not match any of the expected tags"),
    "process without rate": (arrival("constant"), "arrival", "needs request_rate"),
    "loop without users": (arrival("closed_loop"), "arrival", "needs max_concurrency"),
    "rate twice": (BASE | arrival("constant", request_rate=3), "request_rate", "both here and in arrival.request_rate"),
    "burstiness of a constant": (
        *(BASE | arrival("constant") | {"burstiness": 2}, "burstiness"),
        "arrival process constant has no burstiness",
    ),
    "rate of all at once": (BASE | arrival("all_at_once"), "request_rate", "all_at_once has no request_rate"),
    "peak after the day": (
        *(arrival("daily", request_rate=1, period_s=10, peak_s=11), "arrival.daily.peak_s"),
        "at most period_s",
    ),
    "ramp from 0": (
        *(arrival("ramp", ramp_up_start_rps=0, ramp_up_end_rps=2), "arrival.ramp.ramp_up_start_rps"),
        "greater than 0",
    ),
    "fixed and fractional": (prompts("fixed", mean=1.5), "prompt_len.fixed.mean", "whole number of tokens"),
    "fixed with cv": (prompts("fixed", mean=1, cv=1), "prompt_len.fixed.cv", "Extra inputs"),
    "uniform without bounds": (prompts("uniform", min=3), "prompt_len.uniform.max", "Field required"),
    "uniform upside down": (prompts("uniform", min=3, max=2), "prompt_len.uniform.min", "at most max"),
    "uniform too wide": (prompts("uniform", mean=3, cv=0.6), "prompt_len.uniform.cv", "0.577"),
    "uniform says too much": (
        *(prompts("uniform", mean=3, cv=0.1, min=1, max=4), "prompt_len.uniform.cv"),
        "already give the width",
    ),
    "uniform's mean elsewhere": (
        *(prompts("uniform", mean=3, min=1, max=4), "prompt_len.uniform.mean"),
        "middle of min and max (2.5)",
    ),
    "lognormal without cv": (prompts("lognormal", mean=3), "prompt_len.lognormal.cv", "Field required"),
    "azure's time unit": (traced(format="azure", time_unit="ms"), "trace.time_unit", "no other"),
    "azure's hashes": (traced(format="azure", hash_block_tokens=16), "trace.hash_block_tokens", "has no hash_ids"),
    "trace without path": ({"trace": {"format": "azure"}}, "trace.path", "Field required"),
    "unknown format": (traced(format="azur"), "trace.format", "Input should be"),
    "limit of 0": (traced(limit=0), "trace.limit", "greater than or equal to 1"),
    "repeat": (traced(repeat=2), "trace.repeat", "Extra inputs"),
    "empty prefix": (BASE | {"prefix": {"prefix_len": 0}}, "prefix.prefix_len", "greater than or equal to 1"),
    "tenants' sum": (BASE | {"tenants": {"a": 0.5, "b": 0.4}}, "tenants", "shares must sum to 1, and sum to 0.9"),
    "a number's tenant": (BASE | {"tenants": {1: 1.0}}, "tenants", "the tenant 1 must be text"),
    "no name": (BASE | {"tenants": {" ": 1.0}}, "tenants", "the tenant ' ' has no name to show"),
    "long name": (BASE | {"tenants": {"x" * 101: 1.0}}, "tenants", "has 101 characters"),
    "share": (BASE | {"tenants": {"a": 2}}, "tenants.a", "less than or equal to 1"),
    "mix and lengths": ({"mix": [CHAT], "num_prompts": 3}, "num_prompts", "each part of a mix has its own"),
    "mix and tenants": ({"mix": [CHAT], "tenants": {"a": 1.0}}, "tenants", "each part of a mix has its own"),
    "mix and trace": ({"mix": [CHAT], **traced()}, "trace", "cannot be given with a mix"),
    "empty mix": ({"mix": []}, "mix", "at least 1 item"),
    "nobody's": ({"mix": [DRAWN]}, "mix.0.tenant", "Field required"),
    "no rate in a mix": ({"mix": [{**CHAT, "request_rate": None}]}, "mix.0.request_rate", "Field required"),
    "priority": ({"mix": [{**CHAT, "priority": "urgent"}]}, "mix.0.priority", "must be high, normal, low"),
    "closed loop": (
        *({"mix": [{**BATCH, "arrival": {"process": "closed_loop", "max_concurrency": 3}}]}, "mix.0.arrival"),
        "a closed loop cannot be part of a mix",
    ),
    "prefix": ({"mix": [{**CHAT, "prefix": {"prefix_len": 3}}]}, "mix.0.prefix", "Extra inputs"),
}


@pytest.mark.parametrize(("data", "place", "rule"), ERRORS.values(), ids=ERRORS)
def test_a_mistake_is_shown_at_its_key(data: dict[str, Any], place: str, rule: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Workload.model_validate(data)
    found = {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors(include_url=False)}
    assert place in found
    assert rule in found[place]


def source(seed: int = 0, folder: Path = Path(), **settings: Any) -> RequestSource:
    return open_workload(Workload.model_validate(settings), seed=seed, folder=folder)


def column(found: RequestSource, name: str) -> list[Any]:
    return [value for chunk in found.chunks() for value in getattr(chunk, name) or [None] * len(chunk)]


def test_tenants_have_their_shares_and_move_nothing_else() -> None:
    full = {**DRAWN, "priorities": {"high": 0.2, "low": 0.8}, "prefix": {"prefix_len": 32, "share": 0.5}}
    plain, found = source(**full), source(**full, tenants={"a": 0.7, "b": 0.3, "never": 0.0})
    for name in COLUMNS:
        assert column(plain, name) == column(found, name)
    tenants = column(found, "tenant")
    assert set(tenants) == {"a", "b"}
    assert np.mean([name == "a" for name in tenants]) == pytest.approx(0.7, abs=0.03)
    assert tenants != column(source(1, **full, tenants={"a": 0.7, "b": 0.3}), "tenant")
    priorities = np.array(column(found, "priority"))
    assert abs(np.corrcoef(priorities, [name == "a" for name in tenants])[0, 1]) < 0.07  # drawn apart


def trace(tmp_path: Path, columns: str, row: str) -> dict[str, Any]:
    (tmp_path / "t.csv").write_text(f"arrival_s,num_prompt_tokens,num_output_tokens{columns}\n" + f"1,10,5{row}\n" * 50)
    return {"trace": {"path": "t.csv", "format": "csv"}}


def test_a_trace_gets_tenants_unless_it_has_its_own(tmp_path: Path) -> None:
    shares = {"tenants": {"a": 0.5, "b": 0.5}}
    assert set(column(source(folder=tmp_path, **trace(tmp_path, "", ""), **shares), "tenant")) == {"a", "b"}
    own = trace(tmp_path, ",tenant", ",acme")
    assert set(column(source(folder=tmp_path, **own), "tenant")) == {"acme"}
    with pytest.raises(UserError, match=r"workload\.tenants: .*t\.csv has tenants of its own.*leave tenants out"):
        column(source(folder=tmp_path, **own, **shares), "tenant")


def test_a_mix_is_its_parts_merged_by_arrival() -> None:
    found = source(mix=[CHAT, BATCH])
    assert found.num_requests == 500
    times, tenants = column(found, "arrival_ps"), column(found, "tenant")
    assert times == sorted(times)
    assert [tenants.count(name) for name in ("chat", "batch")] == [200, 300]
    priorities = zip(column(found, "priority"), tenants, strict=True)
    assert set(priorities) == {(0, "chat"), (2, "batch")}
    batch_s = np.array([t for t, name in zip(times, tenants, strict=True) if name == "batch"]) / PS_PER_S
    assert (batch_s % 20 <= 5).all()  # in its bursts alone
    assert max(t for t, name in zip(times, tenants, strict=True) if name == "chat") == 100 * PS_PER_S


def test_a_part_does_not_depend_on_the_others() -> None:
    alone, together = source(mix=[CHAT]), source(mix=[CHAT, BATCH])
    is_chat = [name == "chat" for name in column(together, "tenant")]
    for name in ("arrival_ps", "num_prompt_tokens", "num_output_tokens"):
        kept = [value for value, mine in zip(column(together, name), is_chat, strict=True) if mine]
        assert kept == column(alone, name)
    first, second = source(mix=[CHAT, {**CHAT, "tenant": "too"}]), source(3, mix=[CHAT])
    prompts = column(first, "num_prompt_tokens")
    whose = column(first, "tenant")
    assert [p for p, t in zip(prompts, whose, strict=True) if t == "chat"] != [
        p for p, t in zip(prompts, whose, strict=True) if t == "too"
    ]
    assert column(second, "num_prompt_tokens") != column(alone, "num_prompt_tokens")


def test_a_large_mix_comes_in_chunks_and_equal_times_in_the_order_of_the_parts() -> None:
    part = {**without(CHAT, "request_rate"), "arrival": {"process": "all_at_once"}, "num_prompts": CHUNK_SIZE}
    found = source(mix=[part, {**part, "tenant": "second", "num_prompts": 10}])
    chunks = list(found.chunks())
    assert [len(chunk) for chunk in chunks] == [CHUNK_SIZE, 10]
    assert set(chunks[0].tenant or ()) == {"chat"}


def scenario(**workload: Any) -> Scenario:
    return Scenario.from_dict({"profile": PROFILE, "workload": workload})


def test_a_mix_survives_its_dump_and_a_mistake_names_the_part() -> None:
    found = scenario(mix=[CHAT, BATCH])
    assert Scenario.from_dict(found.dump()).dump() == found.dump()
    assert simulate(found).summary["completed"] == 500
    with pytest.raises(UserError, match=r"workload\.mix\[1\]\.arrival"):
        scenario(mix=[CHAT, {**BATCH, "arrival": {"process": "constant"}}])


def test_the_rates_of_a_mix_go_in_step() -> None:
    found = scenario(mix=[CHAT, BATCH])
    assert rates_of(found) == {"workload.mix.0.request_rate": 2, "workload.mix.1.arrival.request_rate": 10}
    changed = found.override(at_rate(found, 3.0))
    assert rates_of(changed) == {"workload.mix.0.request_rate": 3, "workload.mix.1.arrival.request_rate": 15}


def test_a_file_of_lengths_in_a_mix_is_found_from_anywhere_and_counts_by_its_content(tmp_path: Path) -> None:
    trace(tmp_path, "", "")
    part = {**CHAT, "prompt_len": {"distribution": "empirical", "path": "t.csv"}}
    data = {"profile": PROFILE, "workload": {"mix": [part]}}
    found = Scenario.from_dict(data, folder=tmp_path)
    assert found.dump()["workload"]["mix"][0]["prompt_len"]["path"] == str(tmp_path / "t.csv")
    [before] = cells_of(found, [{}], [0])
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text() + "2,11,5\n")
    [after] = cells_of(found, [{}], [0])
    assert before.key != after.key
