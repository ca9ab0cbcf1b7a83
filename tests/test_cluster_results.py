"""A cluster's files, summary and table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from simbatch import UserError
from simbatch.sim.report.result import Result
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.search.simulate import run_resolved, simulate
from tests.test_cli import run

BASE: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 400, "step_time": {"base_s": 0.01, "per_prefill_token_s": 2e-5}},
    "engine": {"max_num_seqs": 8, "max_model_len": 4096},
    "workload": {
        "num_prompts": 400,
        "request_rate": 30,
        "prompt_len": {"distribution": "lognormal", "mean": 100, "cv": 1, "max": 2000},
        "output_len": {"distribution": "lognormal", "mean": 20, "cv": 1, "max": 200},
    },
    "slo": {"ttft_ms": 500},
    "seed": 3,
}


def scenario(**cluster: Any) -> Scenario:
    return Scenario.from_dict(BASE | ({"cluster": cluster} if cluster else {}))


def result(**cluster: Any) -> Result:
    return run_resolved(resolve(scenario(**cluster)), steps=True)


def test_one_replica_gives_the_same_files(tmp_path: Path) -> None:
    """All keys and columns that there are without a cluster."""
    lone, one = result(), result(replicas=1, router={"name": "power_of_two"})
    ours = dict(one.summary["simbatch"])
    own = ours.pop("cluster")
    assert own["num_replicas"] == 1
    assert own["imbalance"]["share_of_load"] == 1
    assert {**one.summary, "simbatch": ours} == lone.summary
    lone.save(tmp_path / "lone")
    one.save(tmp_path / "one")
    for name in ("requests.parquet", "steps.parquet"):
        assert pq.read_table(tmp_path / "one" / name).equals(pq.read_table(tmp_path / "lone" / name))


def test_the_columns_say_where(tmp_path: Path) -> None:
    found = result(replicas=3)
    found.save(tmp_path)
    requests, steps = pq.read_table(tmp_path / "requests.parquet"), pq.read_table(tmp_path / "steps.parquet")
    assert requests["replica"].to_pylist() == [i % 3 for i in range(400)]
    where = dict(zip(requests["request_id"].to_pylist(), requests["replica"].to_pylist(), strict=True))
    for replica, entries in zip(steps["replica"].to_pylist(), steps["scheduled"].to_pylist(), strict=True):
        assert {where[entry["request_id"]] for entry in entries} <= {replica}
    assert sorted(set(steps["replica"].to_pylist())) == [0, 1, 2]


def test_totals_are_sums_over_replicas() -> None:
    found = result(replicas=4, router={"name": "least_requests"})
    ours = found.summary["simbatch"]
    rows = ours["cluster"]["replicas"]
    assert sum(row["num_requests"] for row in rows) == 400 == ours["requests"]["total"]
    assert sum(row["completed"] for row in rows) == found.summary["completed"]
    assert sum(row["num_steps"] for row in rows) == ours["num_steps"]
    assert sum(row["num_preemptions"] for row in rows) == ours["num_preemptions"]
    assert sum(row["share_of_load"] for row in rows) == pytest.approx(1)
    assert np.mean([row["device_busy_share"] for row in rows]) == pytest.approx(ours["device_busy_share"])
    assert ours["kv_cache"]["usable_blocks"] == 4 * 399
    assert np.mean([row["mean_kv_use"] for row in rows]) == pytest.approx(ours["kv_cache"]["mean_use"])
    assert sum(row["mean_waiting"] for row in rows) == pytest.approx(ours["queue"]["mean_waiting"])
    assert 0 < ours["kv_cache"]["peak_use"] <= np.mean([row["peak_kv_use"] for row in rows])
    text = found.text()
    assert "Cluster: 4 replicas behind least_requests" in text
    assert "Most over mean: load " in text


def test_a_mixed_fleet_has_an_engine_for_each_group() -> None:
    fast = {"num_gpu_blocks": 800, "step_time": {"base_s": 0.005}}
    groups = [{"replicas": 2}, {"profile": fast, "engine": {"max_num_seqs": 16}}]
    resolved = resolve(scenario(groups=groups, router={"name": "random"}))
    assert [group.resolved.engine.max_num_seqs for group in resolved.fleet.groups] == [8, 16]  # type: ignore[union-attr]
    found = run_resolved(resolved)
    cluster = found.summary["simbatch"]["cluster"]
    assert [row["group"] for row in cluster["replicas"]] == [0, 0, 1]
    assert cluster["groups"][1]["engine"]["num_gpu_blocks"] == 800
    busy = [row["device_busy_share"] for row in cluster["replicas"]]
    assert busy[2] < min(busy[:2])
    again = simulate(Scenario.from_dict(resolved.dump()))
    assert again.summary["simbatch"]["cluster"]["replicas"] == cluster["replicas"]
    assert "Group 1: 1 x inline, 16 seqs" in found.text()


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(BASE))
    command = ["run", str(file), "-o", str(tmp_path / "out"), "--json", "--set", "cluster.replicas=3"]
    assert run(*[*command, "--router", "session"]) == 0
    cluster = json.loads(capsys.readouterr().out)["simbatch"]["cluster"]
    assert (cluster["router"]["name"], cluster["num_replicas"]) == ("session", 3)
    assert run(*["run", str(file), "--router", "random"]) == 2
    assert "--router: the scenario has one engine" in capsys.readouterr().err


def test_a_router_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from simbatch.routers import Router\n\n\nclass Last(Router):\n"
        "    def route(self, request, replicas):\n        return replicas[-1 if request.num_prompt_tokens > 9 else 7]\n"
    )
    own = Scenario.from_dict(BASE | {"cluster": {"replicas": 2, "router": {"name": "mine.py:Last"}}}, folder=tmp_path)
    with pytest.raises(UserError, match=r"mine\.py:6: router Last failed in route at .*IndexError.*; mend the line"):
        simulate(own)


def test_validate_knows_one_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(BASE | {"cluster": {"replicas": 2}}))
    assert run(*["validate", str(file), "--recorded", str(file)]) == 2
    assert "simbatch validate knows one engine, and no cluster" in capsys.readouterr().err


def test_routers_and_replicas_are_compared_and_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(BASE | {"cluster": {"replicas": 2}}))
    routers = ["--router", "random", "--router", "least_requests"]
    assert run("compare", str(file), *routers, "-o", str(tmp_path / "compared"), "--json") == 0
    compared = json.loads(capsys.readouterr().out)
    assert list(compared["candidates"]) == ["random", "least_requests"]
    assert "simbatch.cluster.imbalance.share_of_load" in {metric["key"] for metric in compared["metrics"]}
    over = ["--over", "cluster.replicas=1,2", "--over", "cluster.router.name=random,prefix_aware", "--jobs", "1"]
    assert run("sweep", str(file), *over, "-o", str(tmp_path / "swept"), "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["cluster.replicas"], row["cluster.router.name"]) for row in rows] == [
        (1, "random"), (1, "prefix_aware"), (2, "random"), (2, "prefix_aware"),
    ]  # fmt: skip
    assert rows[0]["p99_ttft_ms"] > rows[3]["p99_ttft_ms"]
