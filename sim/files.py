"""Files as this project writes them: beside their target first, then renamed, so that none is ever half there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.sim.errors import Problem, UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file to write, which takes the place of `path` when all went well; else `path` stays as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A whole file of text, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_all(folder: Path, writers: Mapping[str, Callable[[Path], None]], own: tuple[str, ...] = ()) -> list[Path]:
    """Let each writer write its file under a temporary name, rename them all, remove what else is in `own`.

    Returns the files in the order of `writers`. Raises UserError when the folder cannot be written to; an earlier
    result is then as it was.
    """
    targets = {folder / name: writer for name, writer in writers.items()}
    blocked = next((target for target in targets if target.is_dir()), None)
    if blocked is not None:
        mend = "move it away, or choose another folder with -o"
        raise UserError(Problem(str(blocked), "is a folder, and a file of the results has its name", mend=mend))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:  # it is left in the other direction: the last file is renamed last
            temporary = {target: stack.enter_context(replacing(target)) for target in reversed(targets)}
            for target, writer in targets.items():
                writer(temporary[target])
        for name in set(own) - writers.keys():
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        rule = f"the results cannot be written: {error.strerror or error}"
        raise UserError(Problem(str(folder), rule, mend="choose another folder with -o")) from error
    return list(targets)


def json_text(content: Any) -> str:
    """Indented, in the order given; NaN and infinities are errors."""
    return json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """The text of `json_text`, for a writer of `write_all`."""
    path.write_text(json_text(content), encoding="utf-8")


def yaml_text(content: Mapping[str, Any]) -> str:
    """Block style, in the order given."""
    import yaml

    text: str = yaml.safe_dump(plain(content), sort_keys=False, allow_unicode=True, width=120)
    return text


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """The text of `yaml_text`, for a writer of `write_all`."""
    path.write_text(yaml_text(content), encoding="utf-8")


def plain(value: Any) -> Any:
    """Mappings, sequences, numpy's scalars and paths as JSON and YAML know them."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value
