"""A shell's text to words: quotes, continued lines, comments, variables; and which of its commands is vLLM's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

SERVERS = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.api_server", "api_server.py")
BENCHES = ("benchmark_serving.py", "vllm.benchmarks.serve")
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?[-=]([^}]*))?\}|(\w+))")
_SWITCH = re.compile(  # of `docker run`, without a value; every other one takes the next word
    r"--(detach|rm|interactive|tty|init|privileged|publish-all|read-only|no-healthcheck|oom-kill-disable|quiet)|-[ditPq]+"
)
_TYPESET = str.maketrans("\u201c\u201d\u2018\u2019", "\"\"''")


@dataclass
class Command:
    """The words behind `vllm serve` or `vllm bench serve`, and what stood round them."""

    kind: str  # serve or bench
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    image: str = ""
    replicas: int = 1
    gpu: str = ""  # what a manifest says of it


def commands_in(text: str) -> list[Command]:
    """Every command of vLLM's in a line or a script; what a variable is set to before is put in its place."""
    variables: dict[str, str] = {}
    found: list[Command] = []
    for words in _split(_joined(text), variables):
        command = vllm_command(words)
        if command is not None:
            found.append(command)
    return found


def vllm_command(words: list[str]) -> Command | None:
    """The one that these words start, whatever stands before it (sudo, Docker, a shell with -c); None without one."""
    environment: dict[str, str] = {}
    for i, word in enumerate(words):
        rest = words[i + 1 :]
        base = PurePosixPath(word.rpartition("=")[2] if word.startswith("ExecStart=") else word).name
        if not word.startswith("ExecStart") and (match := _ASSIGNED.fullmatch(word)):
            environment[match[1]] = match[2]
        if base in ("docker", "podman", "nerdctl") and "run" in rest:
            return _of_container(rest[rest.index("run") + 1 :], environment)
        if base == "vllm" and rest[:1] == ["serve"]:
            return Command("serve", rest[1:], environment)
        if base == "vllm" and rest[:2] == ["bench", "serve"]:
            return Command("bench", rest[2:], environment)
        if base in SERVERS or word in SERVERS:
            return Command("serve", rest, environment)
        if base in BENCHES or word in BENCHES:
            return Command("bench", rest, environment)
        if re.fullmatch(r"-l?c", word) and i and len(rest) >= 1 and (inner := commands_in(rest[0])):
            inner[0].environment = environment | inner[0].environment
            return inner[0]
    return None


def in_image(image: str, words: list[str], environment: Mapping[str, str]) -> Command | None:
    """What a container of this image runs: its words are the server's flags unless they name a command themselves."""
    command = vllm_command(words)
    if command is None and "vllm" in image:
        command = Command("serve", words[1:] if words[:1] == ["serve"] else words)
    if command is not None:
        command.environment = {**environment, **command.environment}
        command.image = image
    return command


def _of_container(words: list[str], environment: dict[str, str]) -> Command | None:
    """`docker run [OPTIONS] IMAGE [WORDS]`."""
    entry: list[str] = []
    i = 0
    while i < len(words) and words[i].startswith("-"):
        name, equals, value = words[i].partition("=")
        if not equals and not _SWITCH.fullmatch(name):
            i += 1
            value = words[i] if i < len(words) else ""
        if name in ("-e", "--env") and (match := _ASSIGNED.fullmatch(value)):
            environment[match[1]] = match[2]
        if name == "--entrypoint":
            entry = value.split()
        i += 1
    return in_image(words[i], [*entry, *words[i + 1 :]], environment) if i < len(words) else None


def _joined(text: str) -> str:
    """One line a command: continued lines put together, and a line of flags behind the one it belongs to.

    Quotes and dashes that a word processor has set become a shell's: a long dash before a word was `--`.
    """
    text = text.translate(_TYPESET).replace("\r", "")
    text = re.sub(r"(?m)(?<!\S)[\u2013\u2014](?=\w)", "--", text)
    text = re.sub(r"(?m)^[ \t]*#.*$", "", text)
    text = re.sub(r"[ \t]*(?<![\\`^])[\\`^][ \t]*(?:#.*)?\n", " ", text)
    text = re.sub(r"(?m)^\s*[$>]\s+(?=\w)", "", text)
    return re.sub(r"\n\s*(?=--?[a-zA-Z])", " ", text)


def _split(text: str, variables: dict[str, str]) -> Iterator[list[str]]:
    """Lists of words, one for each command; assignments that stand alone set variables for what follows."""
    words: list[str] = []
    for word in [*_tokens(text), None]:
        if word is not None:
            words.append(_filled(word[1:], variables) if word[0] != "'" else word[1:])
            continue
        if words:
            plain = words[1:] if words[0] in ("export", "ENV", "ARG") else words
            if plain and all(_ASSIGNED.fullmatch(word) for word in plain):
                variables.update(match.groups() for word in plain if (match := _ASSIGNED.fullmatch(word)))  # type: ignore[misc]
            elif words[0] in ("CMD", "ENTRYPOINT") and words[1:2] and words[1].startswith("["):
                words = [re.sub(r"^[\[,]+|[\],]+$", "", word) for word in words[1:]]
            yield [word for word in words if word]
        words = []


def _filled(word: str, variables: Mapping[str, str]) -> str:
    """`$MODEL`, `${MODEL}` and `${MODEL:-default}` with what was set; one that was not stays as it stands."""

    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        return variables.get(name, match[0] if default is None else default)

    return _VARIABLE.sub(value, word)


_TOKEN = re.compile(
    r"""
    (?P<blank>[ \t]+)
    | (?P<comment>(?<!\S)\#[^\n]*)
    | (?P<redirect>(?<!\S)(?:\d|&)?(?:>>?|<)(?:&\d|[ \t]*[^\s;&|]+))
    | (?P<end>\n|;|\|\|?|&&|&)
    | (?P<single>'[^']*'?)
    | (?P<double>"(?:\\.|[^"\\])*"?)
    | (?P<escaped>\\.)
    | (?P<plain>[^\s'"\\;|&]+)
    """,
    re.VERBOSE | re.DOTALL,
)


def _tokens(text: str) -> Iterator[str | None]:
    """Words, each behind a mark (`'`: a shell fills in no variables), and None where a command ends."""
    word, mark = "", ""
    for match in _TOKEN.finditer(text):
        kind, part = match.lastgroup, match[0]
        if kind in ("blank", "comment", "redirect", "end"):
            if mark:
                yield mark + word
            word, mark = "", ""
            if kind == "end":
                yield None
        elif kind == "single":
            word, mark = word + part.strip("'"), mark or "'"
        elif kind == "double":
            word, mark = word + re.sub(r"\\([\\\"$`])", r"\1", part.strip('"')), '"'
        else:
            word, mark = word + (part[1:] if kind == "escaped" else part), '"'
    if mark:
        yield mark + word
