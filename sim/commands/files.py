"""Files that hold a command of vLLM's: manifests of Kubernetes and Compose, a `--config` of vLLM's, scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from simbatch.sim.commands.shell import Command, commands_in, in_image
from simbatch.sim.cost.gpus import known_gpu
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import read_at_most, stat_of
from simbatch.sim.scenario.flags import PASSED_OVER

MAX_BYTES = 1 << 20
_ENDINGS = (".yaml", ".yml", ".json", ".sh", ".txt", ".conf", ".service", ".env")

_PRODUCTS = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "gpu.nvidia.com/class")


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


def config_words(data: Mapping[Any, Any]) -> list[str]:
    """A `--config` file's keys as words of a command line, as vLLM makes them; `false` is marked, for it is dropped."""
    words: list[str] = []
    for key, value in data.items():
        flag = f"--{str(key).replace('_', '-')}"
        if key in ("model", "model_tag"):
            words[:0] = [str(value)]
        elif value is True:
            words.append(flag)
        elif value is False:
            words.append(f"{flag}={PASSED_OVER}")
        elif isinstance(value, dict):
            words.append(f"{flag}={json.dumps(value)}")
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        else:
            words.append(f"{flag}={value}")
    return words


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
        return ["vllm", "serve", *found[0].words] if found and found[0].kind == "serve" else _plain_words(value)
    return [str(word) for word in value] if isinstance(value, list) else []


def _plain_words(text: str) -> list[str]:
    found = commands_in(f"vllm serve {text}")
    return found[0].words if found else []


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
