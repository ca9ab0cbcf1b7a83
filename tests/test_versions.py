"""Rules and defaults by version of vLLM: the table, what a scenario makes of it, and what an upgrade changes.

Fetching a version's sources, without a package index.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

import pytest

from parity import sources, versions_page
from parity.check import RECORDINGS, CaseLines, first_difference, load, recordings
from parity.conform import by_turns, is_conform
from parity.fuzz import random_case
from parity.serve_flags import names_used
from parity.sources import NotToBeHadError, environment, site_of
from simbatch import Scenario, UserError
from simbatch.sim.scenario import resolve
from simbatch.sim.scheduler.config import ALL, CHANGES, NEWEST, changes_in, parse_version
from simbatch.sim.search import run_resolved
from simbatch.sim.search.upgrade import upgrade
from tests import run_command
from tests.made_scenarios import fixed, serving

PAGE = versions_page.PAGE
INLINE = {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01, "per_prefill_token_s": 1e-5}}


def scenario(**engine):
    return serving(INLINE, 30, 5, engine=engine, prompt_len=fixed(300), output_len=fixed(20))


@pytest.mark.parametrize(
    ("given", "version"),
    [("0.33.0", (0, 33)), ("0.12", (0, 12)), ("v0.15.1", (0, 15)), ("0.32.0+cpu", (0, 32)), ("1.0rc1", (1, 0))],
)
def test_a_version_is_its_major_and_minor_number(given, version):
    assert parse_version(given) == version


@pytest.mark.parametrize(("given", "written"), [(0.27, "0.27"), (0.3, "0.30"), (0.2, "0.20"), ("0.19.1", "0.19.1")])
def test_yaml_may_read_a_version_as_a_number(given, written):
    assert resolve(scenario(vllm_version=given)).engine.vllm_version == written


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0.11.2", "vLLM is simulated from 0.12 on (got '0.11.2')"),
        ("newest", "must be a version of vLLM (got 'newest')"),
        (12, "must be text (got 12)"),
    ],
)
def test_what_is_no_version_is_said(given, said):
    with pytest.raises(UserError) as error:
        scenario(vllm_version=given)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("version", "key", "value", "since"),
    [
        ("0.18", "scheduler_reserve_full_isl", False, "0.19"),
        ("0.23", "watermark", 0.1, "0.24"),
        ("0.28", "max_num_queued_reqs", 10, "0.29"),
        ("0.30.0", "max_num_active_seqs", 3, "0.31"),
    ],
)
def test_a_setting_that_the_version_lacks_names_the_one_that_has_it(version, key, value, since):
    with pytest.raises(UserError) as error:
        resolve(scenario(vllm_version=version, **{key: value}))
    flag = key.replace("_", "-")
    assert f"engine.{key}: vLLM {version} does not have --{flag}, which came with {since}" in str(error.value)
    assert resolve(scenario(vllm_version=since, **{key: value})).engine_settings()[key] == value


def test_the_newest_that_is_tested_holds_where_nothing_is_said_and_both_versions_are_told():
    result = run_resolved(resolve(scenario()))
    assert result.summary["simbatch"]["engine"]["vllm_version"] == NEWEST
    assert "vllm_version" in result.summary["simbatch"]["engine_defaults"]
    assert f"vLLM: rules and defaults of {NEWEST}\n" in result.text()
    bursty = Scenario.load("bursty").override({"workload.num_prompts": 5})
    result = run_resolved(resolve(bursty.override({"engine.vllm_version": "0.27"})))
    assert "vLLM: rules and defaults of 0.27; steps measured with 0.19.0\n" in result.text()
    assert result.summary["simbatch"]["profile"]["vllm_version"] == "0.19.0"


def test_a_newer_version_warns_and_names_the_command_that_tests_it():
    (warning,) = run_resolved(resolve(scenario(vllm_version="0.99.0"))).summary["simbatch"]["warnings"]
    assert "`make conform VLLM=0.99.0`" in warning
    assert resolve(scenario(vllm_version="0.99.0")).engine.changes == ALL


@pytest.mark.parametrize("version", ["0.12", "0.19", "0.28", "0.33"])
def test_a_resolved_scenario_gives_the_same_run_again(version):
    resolved = resolve(scenario(vllm_version=version))
    assert resolve(Scenario.from_dict(resolved.dump())).engine == resolved.engine


def test_defaults_follow_the_version():
    def at(version, profile="rtx4090-llama-3.1-8b-bf16", share=None):
        changes = {"profile": profile, "engine.vllm_version": version, "engine.gpu_memory_utilization": share}
        return resolve(scenario().override(changes)).engine

    assert [at(version).async_scheduling for version in ("0.13", "0.14")] == [False, True]
    assert [at(version).scheduler_reserve_full_isl for version in ("0.18", "0.19")] == [False, True]
    graphs = [at(version, "h100-llama-3.1-8b-bf16", share=0.9).num_gpu_blocks for version in ("0.19", "0.20")]
    assert graphs[0] - graphs[1] == pytest.approx(811_597_824 / (131_072 * 16), abs=2)  # no longer on top
    assert not any("watermark" in resolve(scenario(vllm_version="0.23")).engine_settings() for _ in (0,))


def test_an_interval_that_the_version_passes_over_is_said():
    before = resolve(scenario(vllm_version="0.32", prefill_schedule_interval=4))
    assert any("engine.prefill_schedule_interval" in note for note in before.vllm_notes)
    assert resolve(scenario(prefill_schedule_interval=4)).vllm_notes == ()
    with pytest.raises(UserError, match=r"came with 0\.24"):
        resolve(scenario(vllm_version="0.23", prefill_schedule_interval=4))


def test_prefills_are_held_between_two_steps_that_have_some():
    """By hand: b's and c's prompts come together while a decodes; b's budget is spent in step 4, c waits for step 7."""
    requests = [{"id": "a", "arrival_step": 0, "prompt_len": 8, "max_tokens": 30}]
    requests += [
        {"id": name, "arrival_step": step, "prompt_len": 8, "max_tokens": 3} for name, step in (("b", 1), ("c", 4))
    ]
    config = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 64, "num_gpu_blocks": 50}
    case = {"name": "held", "vllm_version": "0.33", "requests": requests, "config": config}
    case["config"] |= {"prefill_schedule_interval": 3}
    case["step_time_ns"] = dict.fromkeys(("base", "per_prefill_token", "per_decode_seq", "per_context_token"), 1)
    admitted = {line["adm"][0][0]: line["i"] for line in CaseLines(case).play() if "adm" in line}
    assert admitted == {"a": 0, "b": 3, "c": 6}
    before = {
        line["adm"][0][0]: line["i"] for line in CaseLines(case | {"vllm_version": "0.32"}).play() if "adm" in line
    }
    assert before == {"a": 0, "b": 1, "c": 4}


@pytest.mark.parametrize(
    ("rule", "name", "where"),
    [
        ("hashless_blocks_first", "b2_pressure_cache", "step "),
        ("index_follows_victims", "e10_async_livelock", "step "),
        ("spares_lone_prefill", "j1_long64", "step "),
        ("goes_on_behind_victim", "e7_prio_selfvictim", "step "),
        ("scheduler_reserve_full_isl", "b6_reserve", "step "),
    ],
)
def test_a_planted_change_of_a_rule_shows_at_a_step(rule, name, where):
    (pair,) = [pair for pair in recordings(RECORDINGS) if pair[0].stem == name]
    case, recorded = json.loads(pair[0].read_text()), load(pair[1])
    assert first_difference(case, recorded) is None
    difference = first_difference(case | {"planted": [rule]}, recorded)
    assert difference.where.startswith(where)


def test_a_planted_interval_shows_in_a_fresh_case():
    cases = [case for case in map(random_case, [""] * 40, range(40)) if "prefill_schedule_interval" in case["config"]]
    planted = [{"vllm_version": "0.33", "planted": names} for names in ([], ["interval_alone"])]
    assert any(len({str(CaseLines(case | extra).play()) for extra in planted}) == 2 for case in cases[:4])


def test_every_version_but_the_oldest_changes_what_the_table_says():
    assert changes_in("0.12") == frozenset()
    assert changes_in(NEWEST) == ALL
    assert changes_in("0.20") - changes_in("0.20.0") == {"budget_graph"}  # it came with a patch release
    assert changes_in("0.24") - changes_in("0.23") == {
        "hashless_blocks_first", "watermark", "prefill_schedule_interval",
    }  # fmt: skip


def test_an_upgrade_names_the_rule_and_the_first_step(tmp_path, monkeypatch, capsys):
    text = PAGE.read_text(encoding="utf-8")
    file = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]
    (tmp_path / "tight.yaml").write_text(file)
    monkeypatch.chdir(tmp_path)
    done = run_command(capsys, "compare", "tight.yaml", "--vllm-version", "0.18", "--vllm-version", "0.33")
    content = json.loads((tmp_path / "results/tight-compare/compare.json").read_text())
    assert done.code == 0
    assert " ".join(versions_page.OUTPUT.read_text().split()) in " ".join(done.out.split())
    (told,) = content["upgrades"]
    by_name = {change["name"]: change for change in told["changes"]}
    assert by_name["scheduler_reserve_full_isl"]["share"]["simbatch.num_preemptions"] == 1
    assert told["before"]["simbatch.num_preemptions"] > 3 * told["after"]["simbatch.num_preemptions"]
    assert told["first_step"]["what"][1] == "not in the step"


def test_nothing_changes_is_an_answer():
    old, new = (run_resolved(resolve(scenario(vllm_version=version))) for version in ("0.28", "0.33"))
    said = upgrade(scenario(vllm_version="0.28"), old, new, lambda resolved, _: run_resolved(resolved))
    assert said.changes_nothing
    assert "Nothing changes for this traffic" in "\n".join(said.lines())
    assert "goes_on_behind_victim" in said.idle


def test_the_page_is_made_of_the_table_and_the_certificates():
    assert PAGE.read_text(encoding="utf-8") == versions_page.page()
    certified = versions_page.known_versions()
    assert certified[-1] == NEWEST
    assert by_turns()[0] == NEWEST
    for version in certified:
        certificate = json.loads((versions_page.CERTIFICATES / f"{version}.json").read_text())
        assert is_conform(certificate), version
    newest = json.loads((versions_page.CERTIFICATES / f"{NEWEST}.json").read_text())
    assert newest["missing_names"] == []
    assert {name for name, change in CHANGES.items() if change.kind == "setting"} <= {
        key.rpartition(".")[2] for key in newest["defaults"]
    }


def test_the_names_that_are_looked_for_are_those_that_are_imported():
    names = names_used()
    assert "vllm.v1.core.sched.scheduler:Scheduler" in names
    assert "vllm.v1.core.sched.scheduler:Scheduler.max_num_scheduled_tokens" in names


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def wheel_in(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    wheel = folder / f"vllm-{version}-cp38-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("vllm/__init__.py", "")
        file.writestr("vllm/platforms/cpu.py", "torch._C._cpu._is_avx512_supported()")
        file.writestr("vllm/_C.abi3.so", "x" * 1000)
        file.writestr(f"vllm-{version}.dist-info/METADATA", "Version: 0")
    return wheel


def test_the_python_files_are_kept_and_say_that_they_are_a_cpu_build(cache, monkeypatch, capsys):
    monkeypatch.setattr(sources, "_download", lambda version, work, _: wheel_in(work, version))
    (site,) = site_of("0.27.1", "python")
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert files == {"vllm/__init__.py", "vllm/platforms/cpu.py", "vllm-0.27.1+cpu.dist-info/METADATA"}
    assert (site / "vllm/platforms/cpu.py").read_text() == "torch.cpu._is_avx512_supported()"
    assert [path.name for path in cache.iterdir()] == ["0.27.1"]  # the wheel is gone
    assert "taking the Python files" in capsys.readouterr().err
    monkeypatch.setattr(sources, "_download", None)  # there already
    assert site_of("0.27.1", "python") == [site]
    assert environment([site, cache])["PYTHONPATH"] == f"{site}:{cache}"


def test_what_cannot_be_fetched_is_said_and_leaves_nothing(cache, monkeypatch):
    monkeypatch.setattr(sources, "_failed", lambda command: f"no matching distribution for {command[-1]}")
    with pytest.raises(NotToBeHadError, match=r"vLLM 0\.99\.0 cannot be fetched: no matching .* vllm==0\.99\.0"):
        site_of("0.99.0", sys.executable)
    assert list(cache.iterdir()) == []
