"""Commands of vLLM's, in a line or in a file that holds one: scripts, manifests of Kubernetes and Compose, `--config`.

A shell's text is taken to words: quotes, continued lines, comments, variables; then it is told which of them vLLM's is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from simbatch.sim.cost.gpus import known_gpu
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import read_at_most, stat_of
from simbatch.sim.scenario.flags import config_words

MAX_BYTES = 1 << 20
_ENDINGS = (".yaml", ".yml", ".json", ".sh", ".txt", ".conf", ".service", ".env")
_PRODUCTS = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "gpu.nvidia.com/class")
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
    found = (vllm_command(words) for words in _split(_joined(text)))
    return [command for command in found if command is not None]


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


def _split(text: str) -> Iterator[list[str]]:
    """Lists of words, one for each command; assignments that stand alone set variables for what follows."""
    words, variables = list[str](), dict[str, str]()
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


def read_commands(reference: str) -> list[Command]:
    """The commands of a line, or of the file of this name; UserError where there is none of vLLM's."""
    path = Path(reference)
    is_file = "\n" not in reference and len(reference) < 1024 and stat_of(path) is not None
    if not is_file:
        found = commands_in(reference) or _bare(reference)
    else:
        text = _read(path)
        found = [*_in_yaml(text, path)] or commands_in(text)
    if not found:
        rule = "holds no command of vLLM's"
        mend = "give the line that starts the server: simbatch init 'vllm serve MODEL --max-num-seqs 64' --gpu h100"
        raise UserError(Problem(str(path) if is_file else "LINE", rule, mend=mend))
    return found


def _bare(line: str) -> list[Command]:
    """A model's name alone, as `vllm serve NAME`."""
    if line.split() != [line]:
        return []
    if line.endswith(_ENDINGS):
        raise UserError(Problem(line, "cannot be read: No such file", mend="check the path, or give the line itself"))
    return [Command("serve", [line])]


def _read(path: Path) -> str:
    try:
        content = read_at_most(path, MAX_BYTES)
        if len(content) > MAX_BYTES:
            raise UserError(Problem(str(path), f"is larger than {MAX_BYTES} bytes", mend="give the command alone"))
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(Problem(str(path), f"cannot be read: {reason}", mend="check the path")) from None


def _in_yaml(text: str, path: Path) -> Iterator[Command]:
    """Commands of a manifest, or a `--config` file as one; nothing where it is no YAML."""
    try:
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, RecursionError):
        return
    found = [command for document in documents for command in _walk(document, 1, "")]
    yield from found
    if not found and len(documents) == 1 and isinstance(documents[0], dict) and _is_config(documents[0], path):
        yield Command("serve", config_words(documents[0]))


def _is_config(data: Mapping[Any, Any], path: Path) -> bool:
    is_ours = {"profile", "workload"} <= data.keys()
    if is_ours:
        raise UserError(Problem(str(path), "is a scenario already", mend=f"run it: simbatch run {path}"))
    return not {"apiVersion", "services", "kind"} & data.keys()


def _walk(data: Any, replicas: int, gpu: str) -> Iterator[Command]:
    """Every container below, with how many there are of it and on which GPU, where the manifest says so."""
    if isinstance(data, list):
        for item in data:
            yield from _walk(item, replicas, gpu)
    if not isinstance(data, dict):
        return
    deploy = data.get("deploy")
    stated = data.get("replicas", deploy.get("replicas") if isinstance(deploy, dict) else None)
    replicas = stated if isinstance(stated, int) and stated > 0 else replicas
    gpu = _gpu_of(data) or gpu
    command = _container(data)
    if command is not None:
        command.replicas, command.gpu = replicas, gpu
        yield command
        return
    for value in data.values():
        yield from _walk(value, replicas, gpu)


def _gpu_of(data: Mapping[str, Any]) -> str:
    """The short name of the GPU that a pod asks its node for; nothing where it does not say."""
    selector = data.get("nodeSelector")
    if not isinstance(selector, dict):
        return ""
    for label in _PRODUCTS:
        if (gpu := known_gpu(str(selector.get(label, "")))) is not None:
            return gpu.short
    return ""


def _container(data: Mapping[str, Any]) -> Command | None:
    """A container with a command of vLLM's: of Kubernetes, of Compose, or as `docker inspect` shows it."""
    keys = ("entrypoint", "Path", "command", "args", "Args")
    if not any(key in data for key in keys):
        return None
    words = [word for key in keys for word in _words(data.get(key))]
    image = data.get("image", data.get("Image", ""))
    return in_image(str(image), words, _environment(data.get("env", data.get("environment"))))


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        found = commands_in(value)
        if found and found[0].kind == "serve":
            return ["vllm", "serve", *found[0].words]
        found = commands_in(f"vllm serve {value}")
        return found[0].words if found else []
    return [str(word) for word in value] if isinstance(value, list) else []


def _environment(value: Any) -> dict[str, str]:
    """From `[{name, value}]`, `{NAME: value}` or `[NAME=value]`."""
    if isinstance(value, dict):
        return {str(name): str(content) for name, content in value.items()}
    pairs: dict[str, str] = {}
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict) and "name" in item:
            pairs[str(item["name"])] = str(item.get("value", ""))
        elif isinstance(item, str) and "=" in item:
            name, _, content = item.partition("=")
            pairs[name] = content
    return pairs
