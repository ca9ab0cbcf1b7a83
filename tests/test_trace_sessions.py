"""Sessions from files: who waits for whom, what settings leave of them, and what is said of files that break a rule."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import UserError
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.model import Workload
from simbatch.sim.workload.traces.statistics import describe
from simbatch.sim.workload.traces.write import Losses, write_trace
from simbatch.sim.workload.turns import Turns, awaited_of, turns_in
from tests.bench_files import read, source_of, write_lines

Row = dict[str, Any]
AGENT: list[Row] = [  # two sub-requests beside each other, and a turn that waits for both
    {"request_id": "a1", "session_id": "a", "arrival_s": 10, "num_prompt_tokens": 100, "num_output_tokens": 10},
    {"request_id": "a2", "session_id": "a", "num_prompt_tokens": 150, "num_output_tokens": 20, "delay": 0.5},
    {"request_id": "a3", "session_id": "a", "parent": "a1", "num_prompt_tokens": 160, "num_output_tokens": 30},
    {"request_id": "a4", "session_id": "a", "parent": ["a2", "a3"], "num_prompt_tokens": 300, "num_output_tokens": 40},
    {"request_id": "b1", "arrival_s": 30, "num_prompt_tokens": 90, "num_output_tokens": 50},
]


def turns_of_file(path: Path, **options: Any) -> Turns:
    found = turns_in(source_of(path, **options))
    assert found is not None
    return found


def row(session: str | None, arrival: float | None, **others: Any) -> Row:
    """Of our format, without what is None."""
    values = {"session_id": session, "arrival_s": arrival, "num_prompt_tokens": 5, "num_output_tokens": 3} | others
    return {key: value for key, value in values.items() if value is not None}


def test_a_row_waits_for_its_parents_or_the_row_before_it_of_its_session(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", AGENT)
    turns = turns_of_file(path)
    assert awaited_of(turns) == [[], [0], [0], [1, 2], []]
    assert list(turns.turn) == [0, 1, 1, 2, 0]
    assert list(turns.parent) == [-1, 0, 0, 1, -1]
    assert [turns.name(i) for i in range(5)] == ["a", "a", "a", "a", "b1"]
    assert list(turns.delay_ps) == [0, PS_PER_S // 2, 0, 0, 0]
    assert read(path)["arrival_ps"] == [0, 0, 0, 0, 20 * PS_PER_S]  # turns without a time: others decide
    facts = describe(source_of(path)).summary()
    assert facts["sessions"]["num_turns"]["max"] == 4
    assert (facts["sessions"]["num_forks"], facts["sessions"]["num_joins"]) == (1, 1)
    assert facts["sessions"]["mean_session_rate"] == 1 / 20
    assert facts["mean_request_rate"] is None


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "csv.gz", "list"])
def test_the_same_sessions_in_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    source = source_of(write_lines(tmp_path / "agent.jsonl", AGENT))
    path = tmp_path / f"t.{kind}"
    if kind == "list":
        path.write_text(json.dumps(AGENT))
    else:
        to = kind.removesuffix(".gz")
        assert write_trace(source, path, to, hash_block_tokens=16, regroup=False) == (5, Losses())
    if kind.endswith("gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert turns_of_file(path) == source.turns
    assert read(path)["arrival_ps"] == read(tmp_path / "agent.jsonl")["arrival_ps"]


def test_bailian_goes_by_chats_and_its_turns_go_at_their_time_or_later(tmp_path: Path) -> None:
    lengths = {"input_length": 20, "output_length": 4, "type": "text", "hash_ids": [1, 2]}
    rows = [
        {"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "turn": 1, **lengths},
        {"chat_id": 7, "parent_chat_id": -1, "timestamp": 62, "turn": 1, **lengths},
        {"chat_id": 160, "parent_chat_id": 159, "timestamp": 65.114, "turn": 2, **lengths},
    ]
    path = write_lines(tmp_path / "t.jsonl", rows)
    source = source_of(path)
    assert source.format == "bailian"
    assert awaited_of(turns_of_file(path)) == [[], [], [0]]
    assert read(path)["arrival_ps"] == [0, 886 * 10**9, 4 * PS_PER_S]
    assert read(path)["request_id"] == ["159", "7", "160"]


def test_aiperfs_rows_with_a_list_of_turns_and_no_times(tmp_path: Path) -> None:
    turns = [{"input_length": 300, "output_length": 40}, {"delay": 2, "input_length": 150, "output_length": 20}]
    path = write_lines(tmp_path / "t.jsonl", [{"turns": turns}, {"session_id": "b", "turns": turns[:1]}])
    source = source_of(path, prompt_is="new")
    found = turns_in(source)
    assert source.format == "mooncake"
    assert list(found.session) == [0, 0, 1]
    assert list(found.delay_ps) == [0, 2 * 10**9, 0]
    chunk = next(source.chunks())
    assert chunk.num_prompt_tokens == [300, 300 + 40 + 150, 300]
    assert chunk.arrival_ps == [0, 0, 0]
    assert any("no row has a time" in note for note in source.unread())
    whole = source_of(path)
    assert next(whole.chunks()).num_prompt_tokens == [300, 150, 300]
    assert any("1 of 1 later turns have a shorter prompt" in note for note in whole.unread())


@pytest.mark.parametrize(
    ("name", "unit", "expected_ps"), [("delay", None, PS_PER_S), ("pause_ms", None, 10**9), ("pause", "us", 10**6)]
)
def test_units_of_delays(tmp_path: Path, name: str, unit: str | None, expected_ps: int) -> None:
    path = write_lines(tmp_path / "t.jsonl", [row("a", 0), row("a", None, **{name: 3})])
    assert turns_of_file(path, columns={"delay": {"name": name, "unit": unit}}).delay_ps[1] == 3 * expected_ps


def test_an_export_of_traces_by_its_columns(tmp_path: Path) -> None:
    tokens = {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 2}
    rows = [
        {"attributes": {"gen_ai.conversation.id": "c", **tokens}, "spanId": "x", "startTimeUnixNano": 10**18},
        {"attributes": {"gen_ai.conversation.id": "c", **tokens}, "spanId": "y", "startTimeUnixNano": 10**18 + 5},
    ]
    columns = {"session": "attributes.gen_ai.conversation.id", "request_id": "spanId", "arrival": "startTimeUnixNano"}
    columns |= {"prompt": "attributes.gen_ai.usage.input_tokens", "output": "attributes.gen_ai.usage.output_tokens"}
    path = write_lines(tmp_path / "t.jsonl", rows)
    assert awaited_of(turns_of_file(path, columns=columns)) == [[], [0]]
    assert read(path, columns=columns)["arrival_ps"] == [0, 5000]


def test_later_rows_alone_may_say_that_there_are_sessions(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [row(None, 1), row("a", 2), row("a", None)])
    assert awaited_of(turns_of_file(path)) == [[], [], [1]]


def test_settings_take_whole_sessions_and_the_first_rows(tmp_path: Path) -> None:
    rows = [row("a", 1), row("b", 2), row("a", 5), row("b", None), row("c", 9), row("a", 11)]
    path = write_lines(tmp_path / "t.jsonl", rows)
    assert read(path, between=[2, 10])["arrival_ps"] == [0, 0, 7 * PS_PER_S]
    assert awaited_of(turns_of_file(path, between=[2, 10])) == [[], [0], []]
    assert awaited_of(turns_of_file(path, limit=4)) == [[], [], [0], [1]]
    # twice as many sessions a second; what passes within one is what passes
    assert read(path, rate_scale=2)["arrival_ps"] == [s * PS_PER_S // 2 for s in (0, 1, 8, 0, 8, 20)]
    with pytest.raises(UserError, match=r"t.jsonl: the trace has no requests between 20 and 30"):
        read(path, between=[20, 30])


def test_sorting_leaves_turns_without_a_time_behind_those_before_them(tmp_path: Path) -> None:
    rows = [row("a", 5, priority=1), row("a", None, priority=2), row("b", 1, priority=3), row("a", 4, priority=4)]
    path = write_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(UserError, match=r"t.jsonl:4 arrival_s: is 1 s earlier than a row before it of its session"):
        turns_of_file(path)
    assert read(path, sort=True)["priority"] == [3, 4, 1, 2]
    assert awaited_of(turns_of_file(path, sort=True)) == [[], [], [1], [2]]


def test_a_turn_that_is_left_out_hands_on_whom_it_waits_for(tmp_path: Path) -> None:
    rows = [row("a", 1, num_output_tokens=0), row("a", None, delay=1, num_output_tokens=0), row("a", None, delay=2)]
    rows += [row("a", None), row("a", None, num_output_tokens=0, delay=4), row("a", None, delay=8)]
    path = write_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(UserError, match=r"t.jsonl:1 num_output_tokens: a request needs output tokens"):
        turns_of_file(path)
    source = source_of(path, on_empty="skip")
    assert awaited_of(source.turns) == [[], [0], [1]]
    assert list(source.turns.delay_ps)[1:] == [0, 12 * PS_PER_S]
    assert len(next(source.chunks())) == 3
    assert source.skipped == 3


def test_users_tenants_and_classes_are_of_sessions(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [row(f"s{i % 20}", i) for i in range(60)])
    data = {"trace": {"path": str(path)}, "max_concurrency": 3, "tenants": {"x": 0.5, "y": 0.5}}
    source = open_workload(Workload.model_validate(data), seed=1, folder=Path())
    turns = turns_in(source)
    assert (turns.max_sessions, source.max_concurrency) == (3, None)
    tenants = next(source.chunks()).tenant
    assert tenants[:20] == tenants[20:40] == tenants[40:]
    assert set(tenants) == {"x", "y"}


def test_a_row_without_a_tenant_has_its_session_s(tmp_path: Path) -> None:
    rows = [row("a", 0), row("b", 0, tenant="y"), row("a", 1, tenant="x"), row("c", 1), row("b", 2)]
    chunk = next(source_of(write_lines(tmp_path / "t.jsonl", rows)).chunks())
    assert chunk.tenant == ["x", "y", "x", None, "y"]


BAD: list[tuple[list[Row], str]] = [
    ([row("a", 0), row("a", None, delay=-1)], r":2 delay: a delay must not be negative .got -1"),
    ([row("a", 0), row("a", None, delay="soon")], r":2 delay: must be a time in plain numbers"),
    ([row("a", 0), row("b", None)], r":2 arrival_s: is missing, and the row waits for no other.* first row its time"),
    (
        [row(None, 0, request_id="x"), row(None, 1, request_id="y", parent="z")],
        r":2 parent: there is no request of this id in the file .got 'z'.; add its row, or write -1",
    ),
    (
        [row(None, 0, request_id="x", parent="y"), row(None, 1, request_id="y", parent="x")],
        r":\d parent: waits for itself: . waits for . waits for .; take one of them out of the circle",
    ),
    ([row("a", 0, request_id="x", parent="x")], r":1 parent: waits for itself: x waits for x"),
    ([row("a", 0, request_id="x"), row("a", 1, request_id="y", parent=["x", "x"])], r":2 parent: a parent is given tw"),
    ([row("a", 0, request_id="x", parent=[]), row("a", 1, request_id="x")], r":2 request_id: stands twice: first in"),
    ([row("a", 0), row("a", 1, parent="x")], r":2 parent: names requests by their ids, and rows have none"),
    ([row("a", 0, request_id="x"), row("a", 1)], r":2 request_id: a request_id must not be empty"),
    (
        [row("a", 0, tenant="x"), row("a", 1), row("a", 2, tenant="y")],
        r":3 tenant: a session is one tenant's, and this one is x's in .*t.jsonl:1 .got 'y'.; give sessions of two",
    ),
    ([row({"id": 3}, 0)], r":1 session_id: must be text or a whole number"),
]


@pytest.mark.parametrize(("rows", "message"), BAD)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path: Path, rows: list[Row], message: str) -> None:
    with pytest.raises(UserError, match=message):
        turns_in(source_of(write_lines(tmp_path / "t.jsonl", rows)))


def test_system_prompts_of_a_file_have_one_length(tmp_path: Path) -> None:
    rows = [row("a", 0, num_system_tokens=3), row("b", 0, num_system_tokens=3, system_prompt="x")]
    rows += [row("c", 0, num_system_tokens=3, system_prompt="x"), row("d", 0)]
    turns = source_of(write_lines(tmp_path / "t.jsonl", [*rows, row("a", None)])).turns
    assert (turns.num_system_tokens, list(turns.system or ())) == (3, [0, 1, 1, 2])
    with pytest.raises(UserError, match=r":2 num_system_tokens: all system prompts have one length, and others here "):
        turns_in(source_of(write_lines(tmp_path / "t.jsonl", [rows[0], row("a", None, num_system_tokens=4)])))


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    alone = write_lines(tmp_path / "alone.jsonl", [row(None, 0)])
    with pytest.raises(UserError, match=r"prompt_is: there are no sessions in the file"):
        source_of(alone, prompt_is="new")
    source = source_of(write_lines(tmp_path / "agent.jsonl", AGENT))
    with pytest.raises(UserError, match=r"--to azure: has no sessions, and 3 turns wait"):
        write_trace(source, tmp_path / "t", "azure", hash_block_tokens=16, regroup=False)
    _, losses = write_trace(source, tmp_path / "t", "mooncake", hash_block_tokens=512, regroup=True)
    assert losses["mooncake has no parent: turns wait for the row before them of their session"] == 2
    assert awaited_of(turns_of_file(tmp_path / "t", format="mooncake")) == [[], [0], [1], [2], []]


@st.composite
def sessions(draw: Any) -> list[Row]:
    """Rows in any order of times, each waiting for some before it; ids and sessions in a mixture."""
    rows: list[Row] = []
    for i in range(draw(st.integers(2, 9))):
        parents = draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        others: Row = {"request_id": f"r{i}", "parent": [f"r{j}" for j in parents]}
        rows.append(row(None, i if not parents or draw(st.booleans()) else None, delay=i / 8, **others))
    rows.append(row("last", 99, request_id="end", parent=[]))
    rows.append(row("last", None, request_id="beyond", parent="end"))
    return rows


@settings(max_examples=60, deadline=None)
@given(rows=sessions(), seed=st.integers(0, 5), to=st.sampled_from(["jsonl", "csv", "parquet"]))
def test_sessions_are_written_and_drawn_anew_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], seed: int, to: str
) -> None:
    folder = tmp_path_factory.mktemp("t")
    path = write_lines(folder / "t.jsonl", rows)
    source = source_of(path)
    turns, chunk = source.turns, next(source.chunks())
    write_trace(source, folder / f"u.{to}", to, hash_block_tokens=16, regroup=False)
    again = source_of(folder / f"u.{to}")
    assert (again.turns, next(again.chunks()).arrival_ps) == (turns, chunk.arrival_ps)

    drawn = open_workload(
        Workload.model_validate({"trace": {"path": str(path), "resample_blocks": 2}}), seed=seed, folder=Path()
    )
    copies, copied = turns_in(drawn), next(drawn.chunks())
    assert copies.num_sessions == turns.num_sessions
    names = copied.request_id or []
    assert len(set(names)) == len(names) == len(copies)
    before = dict(zip(chunk.request_id or [], awaited_of(turns), strict=True))
    for name, awaited in zip(names, awaited_of(copies), strict=True):
        stem = name.partition("~")[0]
        assert [names[other].partition("~")[0] for other in awaited] == [
            (chunk.request_id or [])[i] for i in before[stem]
        ]
