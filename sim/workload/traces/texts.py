"""Files of texts as traces: texts are counted by the model's tokenizer, or so many characters are taken for a token.

1. The messages up to an answer are one turn's prompt, behind all that was said before, and the answer is its output.
   Messages behind the last answer are left out: nothing says how long theirs would be. An answer without text is none.
2. A row that says how many tokens are answered (`output_tokens`, `output_length`) is one turn, and all of its texts are
   the prompt. aiperf's list of `turns` goes on: a turn's prompt is all before it, with answers of the lengths said.
3. Each full block of 16 tokens has a hash of all up to its end, so that prompts that begin alike share what they do.

A conversation of system (100 tokens), question (20), answer (30), question (10), answer (40) is two turns: prompts of
120 and 160 tokens with 7 and 10 hashes, the first 7 the same; outputs of 30 and 40.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.json_values import MAX_TOKENS

JsonRow = dict[str, Any]
_TALKS = ("messages", "conversations", "conversation")
_PROMPTS = ("prompt", "text_input", "text", "texts")
TEXT_KEYS = (*_PROMPTS, *_TALKS)
_ANSWERS = ("completion", "response", "output")
_NUM_ANSWERED = ("output_tokens", "output_length")
_OF_MODEL = ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "function_call")
_OF_OTHERS = ("user", "human", "system", "developer", "tool", "function", "observation")
_OF_FIRST = ("timestamp", "delay")  # of a row, and not of the later turns in it
_SAID_BY = dict.fromkeys(_OF_MODEL, "assistant") | dict.fromkeys(_OF_OTHERS, "user")
TEXT_HASH_TOKENS = 16
COUNT_THEM = (
    "count them by the model's own: tokenizer: FILE (--tokenizer tokenizer.json), or assume: chars_per_token: 4 "
    "(--chars-per-token 4)"
)


def has_texts(row: Mapping[str, object]) -> bool:
    """Whether a row's prompt is text."""
    texts = [row.get(key) for key in TEXT_KEYS]
    return any(isinstance(text, (str, list)) and bool(text) for text in texts)


class Texts:
    """Makes turns of rows of texts; `unanswered` and `pictured` are the lines of which not all is simulated."""

    def __init__(
        self, chars_per_token: float | None, tokenizer: Path | None, hash_tokens: int, *, is_new: bool = False
    ) -> None:
        self._encode: Callable[[str], str] = str if tokenizer is None else _encoder(tokenizer)
        self._per_token = chars_per_token or 1.0
        self._tokenizer, self._is_new = tokenizer, is_new
        self._hash_tokens = 0 if is_new else hash_tokens
        self._names: dict[bytes, int] = {}  # of blocks
        self.unanswered: set[int] = set()
        self.pictured: set[int] = set()

    @property
    def notes(self) -> tuple[str, ...]:
        """How tokens were counted, and what was not; complete when all is read."""
        if self._tokenizer is not None:
            counted = f"texts are counted by {self._tokenizer.name}; a chat template's own tokens are not in them"
        else:
            counted = f"assumed: {self._per_token:g} characters of text are a token (chars_per_token)"
        notes = [counted]
        if self.unanswered:
            notes.append(
                f"{len(self.unanswered):,} conversations have messages behind the last answer, or no answer: left out"
            )
        if self.pictured:
            notes.append(f"only text is simulated: {len(self.pictured):,} conversations have other content too")
        return tuple(notes)

    def turns_of(self, parts: list[JsonRow], number: int, place: str) -> Iterator[JsonRow]:
        """The turns of a conversation: rows with `input_length`, `output_length`, `hash_ids` and `session_id`."""
        prompt = _Prompt(self._per_token, self._hash_tokens, self._names)
        turns = (turn for i, part in enumerate(parts) for turn in self._turns_in(part, prompt, number, _part(place, i)))
        for i, turn in enumerate(turns):
            if i and self._is_new:
                rule = "the conversation is whole here, and prompt_is: new would put it in front of itself"
                raise UserError(Problem(place, rule, mend="leave prompt_is out"))
            yield turn

    def _turns_in(self, row: JsonRow, prompt: _Prompt, number: int, place: str) -> Iterator[JsonRow]:
        """Those of one row, or of one part of it, which goes on the parts before it."""
        said = self._said(row, number, place)
        rest = {"session_id": f"#{number}"} | {key: value for key, value in row.items() if key not in _GONE}
        counted = next((row[key] for key in _NUM_ANSWERED if row.get(key) is not None), None)
        is_talk = any(isinstance(row.get(key), list) for key in _TALKS)
        if counted is None and not is_talk and all(role != "assistant" for role, _ in said):
            rule = "nothing says how long the answer is"
            mend = "give the row its answer (a message of the assistant), or output_tokens: N"
            raise UserError(Problem(place, rule, mend=mend))
        if counted is None:
            yield from self._answered(said, rest, prompt, number)
            return
        prompt.text += "".join(text for _, text in said)
        yield rest | prompt.lengths() | {"output_length": counted}
        if type(counted) is int and 0 < counted <= MAX_TOKENS:  # an answer that nobody else has
            prompt.text += f"{place} ".ljust(int(counted * self._per_token))[: int(counted * self._per_token)]

    def _answered(self, said: list[tuple[str, str]], rest: JsonRow, prompt: _Prompt, number: int) -> Iterator[JsonRow]:
        """A turn for each answer to something new; one in front of all questions is a part of the first prompt."""
        later = {key: value for key, value in rest.items() if key not in _OF_FIRST}
        asked = answer = ""
        for role, text in [*said, ("user", "")]:
            if role == "assistant" and asked:
                answer += text
                continue
            if answer:
                prompt.text += asked
                yield rest | prompt.lengths() | {"output_length": prompt.num_tokens(answer)}
                prompt.text += answer
                asked, answer, rest = "", "", later
            asked += text
        if asked or not said:
            self.unanswered.add(number)

    def _said(self, row: JsonRow, number: int, place: str) -> list[tuple[str, str]]:
        """Who said what: (user or assistant, text)."""
        said: list[tuple[object, object]] = [("system", row["system"])] if isinstance(row.get("system"), str) else []
        talk = next((key for key in _TALKS if isinstance(row.get(key), list)), None)
        asked = next((key for key in _PROMPTS if row.get(key) is not None), None)
        if talk is not None:
            said += [_message(each, f"{place} {talk}[{i}]") for i, each in enumerate(row[talk])]
        elif asked is not None:
            said.append(("user", row[asked]))
            said += [("assistant", row[key]) for key in _ANSWERS if isinstance(row.get(key), str)][:1]
        else:
            mend = f"name a file with one of {', '.join(TEXT_KEYS)}, or leave out chars_per_token and tokenizer"
            raise UserError(Problem(place, "there is no text to count", ", ".join(row)[:80] or NOTHING, mend))
        return [self._one(role, content, number, place) for role, content in said]

    def _one(self, role: object, content: object, number: int, place: str) -> tuple[str, str]:
        by = _SAID_BY.get(role) if isinstance(role, str) else None
        if by is None:
            known = ", ".join((*_OF_OTHERS, *_OF_MODEL))
            raise UserError(Problem(place, "nobody is known by this role", role, f"write one of {known}"))
        texts, is_all = _texts_in(content)
        if texts is None:
            raise UserError(Problem(place, "what is said must be text, or a list of parts", content, "quote it"))
        if not is_all:
            self.pictured.add(number)
        return by, self._encode(texts)


_GONE = {"system", *TEXT_KEYS, *_ANSWERS, *_NUM_ANSWERED}


class _Prompt:
    """A prompt that grows, and the names of its full blocks."""

    def __init__(self, per_token: float, hash_tokens: int, names: dict[bytes, int]) -> None:
        self.text = ""
        self._per_token, self._hash_tokens, self._names = per_token, hash_tokens, names
        self._hashes: list[int] = []
        self._last = b""

    def num_tokens(self, text: str) -> int:
        """Whole ones, at least one of a text that is not empty."""
        return max(int(len(text) / self._per_token), 1) if text else 0

    def lengths(self) -> JsonRow:
        """As the prompt is now."""
        num, size = self.num_tokens(self.text), self._hash_tokens
        for i in range(len(self._hashes), num // size if size else 0):
            begin, end = int(i * size * self._per_token), int((i + 1) * size * self._per_token)
            block = self.text[begin:end].encode(errors="surrogatepass")
            self._last = blake2b(self._last + block, digest_size=16).digest()
            self._hashes.append(self._names.setdefault(self._last, len(self._names)))
        return {"input_length": num} | ({"hash_ids": self._hashes[:]} if size else {})


def _part(place: str, i: int) -> str:
    return f"{place} turns[{i}]" if i else place


def _message(message: object, place: str) -> tuple[object, object]:
    """Its role and content, in OpenAI's words or in ShareGPT's; a call of a tool is content too."""
    if not isinstance(message, dict) or not ("role" in message or "from" in message):
        rule = "a message needs a role and what is said"
        raise UserError(Problem(place, rule, message, '{"role": "user", "content": "..."}, or from and value'))
    content = message.get("content", message.get("value"))
    if calls := message.get("tool_calls"):
        return message.get("role"), [content, json.dumps(calls, ensure_ascii=False)]
    return message.get("role", message.get("from")), content


def _texts_in(content: object) -> tuple[str | None, bool]:
    """The text of a message's content, None where it is none, and whether it is all of it."""
    match content:
        case None:
            return "", True
        case str():
            return content, True
        case {"text": part} | {"content": part} | {"contents": part}:
            return _texts_in(part)
        case dict():
            return "", False  # an image, a sound, a file
        case list():
            parts = [_texts_in(part) for part in content]
            texts = [text for text, _ in parts if text is not None]
            return "".join(texts) if len(texts) == len(parts) else None, all(is_all for _, is_all in parts)
    return None, False


def _encoder(path: Path) -> Callable[[str], str]:
    """A text as one character a token, equal where the tokens are; UserError without the package or the file."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        rule, mend = "needs the package tokenizers", "pip install tokenizers, or assume: chars_per_token: 4"
        raise UserError(Problem("tokenizer", rule, str(path), mend)) from None
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises nothing narrower
        rule = f"is no tokenizer.json: {error}"
        raise UserError(Problem(str(path), rule, mend="name the file of the model's folder on Hugging Face")) from None

    def encode(text: str) -> str:
        whole = text.encode(errors="replace").decode()  # half of a UTF-16 pair is no text
        return "".join(map(chr, tokenizer.encode(whole, add_special_tokens=False).ids))

    return encode
