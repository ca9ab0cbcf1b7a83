"""Files of texts: vLLM's multi-turn benchmark, ShareGPT, `--dataset-name custom`, aiperf."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch import Scenario, UserError, simulate
from simbatch.sim.workload.traces.texts import Texts
from simbatch.sim.workload.turns import awaited_of, turns_in
from tests.bench_files import read, source_of, write_lines


def said(*texts: object, system: str = "") -> list[dict[str, object]]:
    """A question, its answer, and so on."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *messages] if system else messages


SYSTEM, HELLO, ANSWER, MORE = "s" * 400, "h" * 80, "a" * 120, "m" * 40
TALK = {"id": "x", "messages": said(HELLO, ANSWER, MORE, ANSWER, system=SYSTEM)}
SHARED = {"id": "y", "messages": said("other", "yes", system=SYSTEM)}


def lengths(path: Path, **options: Any) -> list[tuple[int, int]]:
    columns = read(path, chars_per_token=4, **options)
    return list(zip(columns["num_prompt_tokens"], columns["num_output_tokens"], strict=True))


def test_a_turn_is_all_before_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "talks.json"
    path.write_text(json.dumps([TALK, SHARED]))
    source = source_of(path, chars_per_token=4)
    (chunk,) = source.chunks()
    assert chunk.num_prompt_tokens == [120, 160, 101]
    assert chunk.num_output_tokens == [30, 30, 1]
    turns = turns_in(source)
    assert awaited_of(turns) == [[], [0], []]
    first, second, other = chunk.hash_ids or []
    assert (len(first), len(second), len(other)) == (7, 10, 6)
    assert second[:7] == first
    assert other == first[:6]  # 400 characters of system prompt are 6 blocks, and the rest of the 7th is not the same
    assert "assumed: 4 characters of text are a token (chars_per_token)" in source.notes


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"conversations": [{"from": "human", "value": HELLO}, {"from": "gpt", "value": ANSWER}]}], [(20, 30)]),
        ([{"prompt": HELLO, "output_tokens": 7}, {"prompt": MORE, "output_tokens": 9}], [(20, 7), (10, 9)]),
        ([{"prompt": HELLO, "completion": ANSWER}], [(20, 30)]),
        ([{"timestamp": 0, "text_input": HELLO, "output_length": 7}], [(20, 7)]),
        ([{"turns": [{"text": HELLO, "output_length": 5}, {"text": MORE, "output_length": 6}]}], [(20, 5), (35, 6)]),
        ([{"messages": said(HELLO, ANSWER, MORE), "output_tokens": 8}], [(60, 8)]),
        ([{"messages": said(HELLO, ANSWER, MORE)}, {"messages": []}], [(20, 30)]),  # nobody answers the last one
        ([{"messages": said(HELLO, "", MORE, ANSWER)}], [(30, 30)]),
        ([{"messages": [*said(HELLO), *said(ANSWER, ANSWER)[1:], *said(MORE, ANSWER)[1:]]}], [(20, 60)]),
        (
            [{"messages": [{"role": "user", "content": [{"text": HELLO}, {"type": "image_url"}]}, *said("", "x")]}],
            [(20, 1)],
        ),
    ],
)
def test_forms_of_texts(rows: list[dict[str, Any]], expected: list[tuple[int, int]], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "texts.jsonl", rows)
    assert lengths(path) == expected


@given(st.lists(st.lists(st.text("ab", max_size=40), min_size=2, max_size=8), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_hashes_are_equal_where_texts_are(talks: list[list[str]]) -> None:
    """Against the characters themselves: so many blocks are shared as the prompts begin alike."""
    texts, prompts = Texts(2.0, None, 4), []
    for number, talk in enumerate(talks):
        rows = list(texts.turns_of([{"messages": said(*talk, "end")}], number, "t"))
        prompts += [(row["hash_ids"], row["input_length"]) for row in rows]
        assert [row["input_length"] // 4 for row in rows] == [len(row["hash_ids"]) for row in rows]
    singles = [
        (*texts.turns_of([{"prompt": "".join(talk), "output_tokens": 1}], 0, "t"),)[0]["hash_ids"] for talk in talks
    ]
    for one, ids in zip(talks, singles, strict=True):
        for other, others in zip(talks, singles, strict=True):
            whole, second = "".join(one), "".join(other)
            alike = next(
                (i for i, (a, b) in enumerate(zip(whole, second, strict=False)) if a != b), min(len(whole), len(second))
            )
            shared = next(
                (i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), min(len(ids), len(others))
            )
            assert shared == alike // 8


@pytest.mark.parametrize(
    "row", [{"prompt": HELLO, "output_tokens": 7}, {"turns": [{"text": "hi"}, {"text": "and", "delay": 2}]}, TALK]
)
def test_without_a_count_both_ways_are_named(row: dict[str, Any], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "texts.jsonl", [row])
    with pytest.raises(UserError, match=r"are texts.*--tokenizer tokenizer.json.*--chars-per-token 4"):
        source_of(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": HELLO}, "nothing says how long the answer is"),
        ({"messages": [{"role": "cat", "content": "x"}]}, "nobody is known by this role.*'cat'"),
        ({"messages": ["x"]}, r"texts.jsonl:1 messages\[0\]: a message needs a role"),
        ({"messages": said(HELLO, 5)}, "must be text"),
        ({"input_length": 5, "output_length": 3}, "there is no text to count"),
        ({"turns": [{"text": HELLO, "output_length": 5}, {"text": MORE}]}, r"turns\[1\]: nothing says how long"),
    ],
)
def test_texts_that_break_a_rule(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "texts.jsonl", [row])
    with pytest.raises(UserError, match=message):
        read(path, chars_per_token=4)


def test_what_is_whole_is_not_put_before_itself(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "texts.jsonl", [TALK])
    with pytest.raises(UserError, match="leave prompt_is out"):
        read(path, chars_per_token=4, prompt_is="new")
    delta = [{"session_id": "a", "text_input": text, "output_length": 4} for text in (HELLO, MORE)]
    assert lengths(write_lines(path, delta), prompt_is="new") == [(20, 4), (34, 4)]


def test_a_tokenizer_counts_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: a token a word."""

    def encode(text: str, add_special_tokens: bool) -> SimpleNamespace:
        assert not add_special_tokens
        return SimpleNamespace(ids=[sum(map(ord, word)) for word in text.split()])

    module = ModuleType("tokenizers")
    module.Tokenizer = SimpleNamespace(from_str=lambda text: SimpleNamespace(encode=encode))  # type: ignore[attr-defined]
    path = write_lines(tmp_path / "texts.jsonl", [{"messages": said("one two three", "four five")}])
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", module)
    source = source_of(path, tokenizer=str(tmp_path / "tokenizer.json"))
    (chunk,) = source.chunks()
    assert (chunk.num_prompt_tokens, chunk.num_output_tokens) == ([3], [2])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"needs the package tokenizers.*pip install tokenizers"):
        source_of(path, tokenizer=str(tmp_path / "tokenizer.json"))


def test_the_real_tokenizers_read_their_own_file(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the package is not installed: pip install tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    path = write_lines(tmp_path / "texts.jsonl", [{"messages": said("a b a c", "b \ud800")}])
    assert read(path, tokenizer=str(tmp_path / "tokenizer.json"))["num_prompt_tokens"] == [4]
    with pytest.raises(UserError, match=r"is no tokenizer.json"):
        read(path, tokenizer=str(path))


def test_a_run_says_what_was_assumed_and_hits_what_is_shared(tmp_path: Path) -> None:
    write_lines(tmp_path / "talks.jsonl", [TALK, SHARED])
    step_time = {"base_s": 0.01, "per_prefill_token_s": 0, "per_decode_seq_s": 0, "per_context_token_s": 0}
    trace = {"path": str(tmp_path / "talks.jsonl"), "chars_per_token": 4}
    scenario = {
        "profile": {"num_gpu_blocks": 1000, "step_time": step_time},
        "workload": {"max_concurrency": 1, "trace": trace},
    }
    result = simulate(Scenario.from_dict(scenario))
    assert any("4 characters of text are a token" in line for line in result.summary["simbatch"]["unread"])
    # the second turn finds 9 blocks of the 120 + 30 tokens before it, the other conversation 6 of the system prompt
    assert result.record.requests.num_cached_tokens.tolist() == [0, 144, 96]
