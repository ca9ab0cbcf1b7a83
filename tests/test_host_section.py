"""Host and front end of a profile: from the file to what the engine takes, whose they are, and seeded draws."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simbatch import Scenario, UserError
from simbatch.sim.cost.by_name import load_profile, profile_json, shipped_text
from simbatch.sim.cost.host import FrontEndTimes, HostTimes, LaunchDraws, LaunchTimes
from simbatch.sim.cost.sections import Spread
from simbatch.sim.scenario import resolve
from tests import exit_code, run_command, traffic
from tests.made_samples import FRONT_END, HOST

US = 10**6  # ps
INLINE = {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}}
WORKLOAD = traffic(5, 100, 20, request_rate=5)


def scenario(profile: Any, folder: Path = Path(), **sections: Any) -> Scenario:
    return Scenario.from_dict({"profile": profile, "workload": WORKLOAD, **sections}, folder=folder)


def test_every_figure_reaches_the_engine() -> None:
    engine = resolve(scenario(INLINE | {"host": HOST, "front_end": FRONT_END})).engine
    assert engine.host == HostTimes(
        graph=LaunchTimes(base_ps=6700 * US, per_seq_ps=US),
        piecewise=LaunchTimes(base_ps=16300 * US, per_seq_ps=30 * US, per_prefill_ps=1000 * US, per_token_ps=US),
        none=LaunchTimes(base_ps=24300 * US),
        update_base_ps=500 * US,
        update_per_seq_ps=2 * US,
        admit_base_ps=300 * US,
        admit_per_prompt_token_ps=US,
        lag_ps=3400 * US,
        tail_ps=100 * US,
    )
    assert engine.front_end == FrontEndTimes(
        per_request_ps=3000 * US, per_prompt_token_ps=2 * US, per_chunk_ps=60 * US, network_ps=2000 * US
    )


@pytest.mark.parametrize("sections", [{}, {"host": {}}, {"host": None, "front_end": {"network_s": 0}}])
def test_nothing_written_or_all_of_it_0_is_no_host_and_no_front_end(sections: dict[str, Any]) -> None:
    resolved = resolve(scenario(INLINE | sections))
    assert (resolved.engine.host, resolved.engine.front_end, resolved.host_noise()) == (None, None, None)


def test_older_keys_are_read_as_admission_and_network() -> None:
    engine = resolve(scenario(INLINE | {"request_overhead_s": 0.001, "client_overhead_s": 0.005})).engine
    assert engine.host == HostTimes(admit_base_ps=1000 * US)
    assert engine.front_end == FrontEndTimes(network_ps=5000 * US)


def test_front_end_false_takes_it_away() -> None:
    profile = INLINE | {"front_end": FRONT_END}
    assert resolve(scenario(profile, engine={"front_end": False})).engine.front_end is None
    older = INLINE | {"client_overhead_s": 0.005}
    assert resolve(scenario(older, engine={"front_end": False})).engine.front_end is None


def test_kernel_tables_have_both_assumed() -> None:
    for name, graph_ps in (("h100-llama-3.1-8b-bf16", 2_700_000_000), ("h100-llama-2-70b-bf16-tp8", 3_800_000_000)):
        resolved = resolve(scenario(name))
        assert resolved.engine.host.graph.base_ps == graph_ps  # the floor grows with the GPUs
        assert resolved.engine.front_end is not None
        assert resolved.engine.max_capture_size == 512
        assert resolved.profile.host.assumed


def test_a_profile_is_written_as_it_was_read(tmp_path: Path) -> None:
    content = json.loads(shipped_text("h100-llama-3.1-8b-bf16")) | {"host": HOST, "front_end": FRONT_END}
    content["step_time"]["padded"] = True
    (tmp_path / "a.json").write_text(json.dumps(content))
    profile = load_profile("a.json", folder=tmp_path)
    text = profile_json(profile)
    assert json.loads(text)["host"] == HOST
    (tmp_path / "b.json").write_text(text)
    assert load_profile("b.json", folder=tmp_path) == profile


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`measured.json` with a host, `older.json` with older keys, `bare.json` with neither; no profiles; a scenario."""
    monkeypatch.chdir(tmp_path)
    for name, sections in {
        "measured": {"host": HOST, "front_end": FRONT_END},
        "older": {"request_overhead_s": 0.001},
        "bare": {},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": f"{name}-host"} | INLINE | sections))
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "wrong.json").write_text('{"host": {"lag_s": -1}}')
    (tmp_path / "x.yaml").write_text(f"profile: bare.json\nworkload: {json.dumps(WORKLOAD)}\n")
    return tmp_path


def test_another_profile_s_host_and_front_end_take_the_place(folder: Path) -> None:
    mine = INLINE | {"host": {"lag_s": 1}, "client_overhead_s": 0.1, "step_time": {"base_s": 0.02}}
    resolved = resolve(scenario(mine, folder, host={"from": "measured.json"}))
    there = resolve(scenario("measured.json", folder))
    assert (resolved.engine.host, resolved.engine.front_end) == (there.engine.host, there.engine.front_end)
    assert resolved.cost_model().decode_ps(1) == 20_000 * US
    assert resolved.host_profile == "measured-host"
    assert resolved.host_noise() is not None
    of_older = resolve(scenario(mine, folder, host={"from": "older.json"})).engine
    assert (of_older.host, of_older.front_end) == (HostTimes(admit_base_ps=1000 * US), None)
    again = resolve(Scenario.from_dict(resolved.dump()))
    assert (again.engine, again.profile, again.dump()) == (resolved.engine, resolved.profile, resolved.dump())


def test_a_file_of_the_two_sections_alone_serves_as_well(folder: Path) -> None:
    (folder / "alone.json").write_text(json.dumps({"host": HOST, "front_end": FRONT_END}))
    alone = resolve(scenario("older.json", folder, host={"from": "alone.json"}))
    whole = resolve(scenario("older.json", folder, host={"from": "measured.json"}))
    assert (alone.engine, alone.host_profile) == (whole.engine, "alone")
    (folder / "network.json").write_text(json.dumps({"name": "far", "front_end": {"network_s": 0.02}}))
    engine = resolve(scenario("older.json", folder, host={"from": "network.json"})).engine
    assert (engine.host, engine.front_end) == (None, FrontEndTimes(network_ps=20_000 * US))


def test_the_flag_does_the_same_and_the_result_says_whose_host_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("run", "x.yaml", "--host", "measured.json", "-o", "out") == 0
    assert "Host and front end: of measured-host" in capsys.readouterr().out
    assert json.loads((folder / "out" / "summary.json").read_text())["simbatch"]["profile"]["host"] == "measured-host"
    assert f"host:\n  from: {folder / 'measured.json'}\n" in (folder / "out" / "scenario.yaml").read_text()


NEITHER = "has neither a host nor a front_end section"


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--host bare.json", f"error: --host: the profile bare-host {NEITHER} (got 'bare.json'); name"),
        ("--host h100", "error: --host: neither a shipped profile nor a file (got 'h100'); "),
        ("--host empty.json", f"error: --host: the profile empty {NEITHER} (got "),
        ("--host wrong.json", "wrong.json host.lag_s: must be at least 0 (got -1); raise it"),
        ("--host no.json", "no.json: no such file; check the path"),
        ("--set host=measured.json", "must be a mapping that names a profile (got 'measured.json'); write host: "),
        ("--set host.of=measured.json", "error: --set host.of: unknown key (got 'measured.json'); "),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_wrong_host_is_named(flag: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("run", "x.yaml", *flag.split()) == 2
    assert answer in capsys.readouterr().err


def draws(seed: int = 7, replica: int = 0) -> LaunchDraws:
    return Spread.model_validate(HOST["spread"]).draws(seed, replica)


def test_draws_are_those_that_were_recorded() -> None:
    """Whatever numpy and machine: the first launches of seed 7, alone and as replica 1."""
    kinds = ("piecewise", "none", "piecewise", "none")
    assert [[drawn.launch_ps(10**9, kind) for kind in kinds] for drawn in (draws(), draws(replica=1))] == RECORDED


RECORDED = [[562408447, 977459729, 1078887939, 1000360131], [1018341064, 1051348865, 677154541, 954705834]]


def test_the_jth_launch_takes_the_jth_draw_of_whichever_kind() -> None:
    first, second = draws(), draws()
    in_turn = [first.launch_ps(10**9, ("piecewise", "none")[i % 2]) for i in range(100)]
    alone = [second.launch_ps(10**9, "piecewise") for _ in range(100)]
    assert in_turn[::2] == alone[::2]
    # both tables are linear: 0.9 to 1.1 is a fifth as wide as 0.5 to 1.5; 60 ps are 2 ** -24 of 1 ms
    assert np.array(in_turn[1::2]) - 10**9 == pytest.approx((np.array(alone[1::2]) - 10**9) / 5, abs=60)


def test_launches_take_their_mean_on_average_and_are_as_wide_as_the_spread() -> None:
    drawn = draws(3)
    times = np.array([drawn.launch_ps(10**9, "piecewise") for _ in range(40_000)]) / 1e9
    assert times.mean() == pytest.approx(1, abs=0.005)
    assert times.std() == pytest.approx(1 / np.sqrt(12), rel=0.01)
    assert 0.5 < times.min() < 0.51
    assert 1.49 < times.max() < 1.5


def test_only_kinds_with_a_spread_draw() -> None:
    drawn = draws()
    assert [drawn.draws_for(kind) for kind in ("graph", "piecewise", "none")] == [False, True, True]


@pytest.mark.parametrize(
    "other", [lambda: draws(8), lambda: draws(replica=1), lambda: draws(replica=2)], ids=["seed", "replica", "another"]
)
def test_another_seed_or_replica_draws_otherwise(other: Callable[[], LaunchDraws]) -> None:
    one, two = ([drawn.launch_ps(10**9, "none") for _ in range(20)] for drawn in (draws(), other()))
    assert len(set(one) & set(two)) < 3


def test_draws_come_with_the_run_unless_switched_off() -> None:
    profile = INLINE | {"host": HOST}
    here, there = (resolve(scenario(profile, seed=7)).host_noise() for _ in range(2))
    assert [here.launch_ps(US, "none") for _ in range(9)] == [there.launch_ps(US, "none") for _ in range(9)]
    assert resolve(scenario(profile, engine={"host_noise": False})).host_noise() is None
    no_spread = {key: value for key, value in HOST.items() if key != "spread"}
    assert resolve(scenario(INLINE | {"host": no_spread})).host_noise() is None


NO_PREFILLS = "a graph's launch has no prefills, so there is no per_prefill_s: base_s and per_seq_s alone"
NOT_1 = "the mean ratio must be 1, not 0.8500: divide every ratio by that"
OLDER_HOST = "is the older word for host.admit.base_s, and there is a section host too: remove it (got"
OLDER_FRONT = "is the older word for front_end.network_s, and there is a section front_end too: remove it"
WRONG = [
    ({"host": {"launch": {"graph": {"base_s": -1}}}}, "host.launch.graph.base_s: must be at least 0 (got -1)"),
    ({"host": {"launch": {"graph": {"per_prefill_s": 0.1}}}}, f"host.launch.graph: {NO_PREFILLS}"),
    ({"host": {"launch": {"piecewise": {"per_sec_s": 1}}}}, "host.launch.piecewise.per_sec_s: unknown key (got 1)"),
    ({"host": {"launch": {"eager": {}}}}, "host.launch.eager: unknown key"),
    ({"host": {"lag_s": 3400}}, "host.lag_s: must be at most 60 (got 3400); lower it"),
    ({"host": {"tail_s": float("nan")}}, "host.tail_s: must be a finite number"),
    ({"host": {"update": {"per_seq_s": "1"}}}, "host.update.per_seq_s: must be a number (got '1')"),
    ({"host": {"admit": {"per_prompt_token_s": 1.5}}}, "host.admit.per_prompt_token_s: must be at most 1 (got 1.5)"),
    ({"host": 3}, "host: must be an object with keys (got 3)"),
    ({"host": {"source": 3}}, "host.source: must be text (got 3); put it in quotes"),
    ({"host": {"spread": {"none": {"share": [0, 1], "ratio": [0.5, 1.2]}}}}, f"host.spread.none: {NOT_1}"),
    ({"host": {"spread": {"none": {"share": [0, 0.5], "ratio": [1, 1]}}}}, "host.spread.none: share must rise from 0"),
    ({"host": {"spread": {"none": {"share": [0, 1], "ratio": [2, 0]}}}}, "host.spread.none.ratio[1]: must be above 0"),
    ({"host": {"spread": {"decode": {}}}}, "host.spread.decode: unknown key"),
    ({"front_end": {"per_chunks_s": 0.1}}, "front_end.per_chunks_s: unknown key (got 0.1); did you mean per_chunk_s?"),
    ({"front_end": {"network_s": -0.1}}, "front_end.network_s: must be at least 0 (got -0.1)"),
    ({"host": {}, "request_overhead_s": 0.001}, f"request_overhead_s: {OLDER_HOST}"),
    ({"front_end": {}, "client_overhead_s": 0.001}, f"client_overhead_s: {OLDER_FRONT}"),
    ({"step_time": {"base_s": 1, "padded": 1}}, "step_time.padded: must be true or false (got 1)"),
]


@pytest.mark.parametrize(("sections", "answer"), WRONG)
def test_a_wrong_section_is_named_with_its_place(sections: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError) as caught:
        load_profile(INLINE | sections, folder=Path())
    assert f"profile.{answer}" in str(caught.value)


def test_an_older_key_of_0_beside_a_section_says_nothing() -> None:
    profile = INLINE | {"host": {"lag_s": 0.001}, "request_overhead_s": 0.0, "front_end": {}, "client_overhead_s": 0}
    assert resolve(scenario(profile)).engine.host == HostTimes(lag_ps=1000 * US)


def test_profiles_show_tells_the_figures_and_where_they_were_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = " ".join(run_command(capsys, "profiles", "show", folder / "measured.json").out.split())
    assert "host from one H100, 2026-11-27" in shown
    assert "host.launch.piecewise.base_s 0.0163" in shown
    assert "host.spread.none 0.9 to 1.1 times the mean" in shown
    assert "front_end from somewhere (it does not say)" in shown
