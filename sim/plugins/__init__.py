"""Classes that a scenario chooses by name: those that ship, those that other packages offer, and the user's own code.

Policies and routers are such kinds of classes: one file each in a folder, a dataclass whose fields are its parameters.
Here they are found; beside it they are described, and tried on random cases by a contract test.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, dataclass_transform, get_type_hints

from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from pydantic import BaseModel


T = TypeVar("T")
CONTRACT = {"base", "testing"}  # files of each kind's folder that are none of the kind
OWN = "for your own, write package.module:Class or file.py:Class"


@dataclass_transform(eq_default=False)
@dataclass(eq=False)
class Plugin:
    """A class whose annotated attributes are its parameters.

    A subclass is a dataclass without saying so. In YAML its parameters are given beside the name and checked by their
    types (`Annotated[int, Field(ge=1)]`).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(eq=False)(cls)

    def parameters(self) -> dict[str, Any]:
        """The parameters by name, as YAML would give them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class SentRequest(Protocol):
    """What a client sends, as anybody on the way may know it."""

    @property
    def request_id(self) -> str:
        """The name it came with."""

    @property
    def arrival_s(self) -> float:
        """When the client sent it."""

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""

    @property
    def priority(self) -> int:
        """Lower goes first, as in vLLM: high 0, normal 1, low 2."""

    @property
    def tenant(self) -> str | None:
        """Whose request it is, when the trace says."""

    @property
    def session_id(self) -> str | None:
        """Which conversation, or task of an agent, it is a turn of; None where nobody says."""

    @property
    def turn(self) -> int:
        """How many turns of its session came before, one after the other: 0 for the first, and without a session."""

    @property
    def has_next_turn(self) -> bool:
        """Whether it is known that another turn waits for its end; never when that comes, or how long it is."""


@dataclass(frozen=True)
class Plugins(Generic[T]):
    """All classes of one kind: `word` says what they are, `key` where a scenario names one, `see` which command lists.

    `package` is the folder of those that ship, every file of it but those of `CONTRACT` one of that name; `base` is
    what all derive from, and `public` how a user imports it.
    """

    word: str
    key: str
    see: str
    package: str
    base: type[T]
    public: str

    @property
    def group(self) -> str:
        """The entry points with which other packages offer theirs."""
        return self.package

    def names(self) -> list[str]:
        """Those that ship and those that installed packages offer."""
        return sorted({*self.shipped, *_offered(self.group)})

    @cached_property
    def shipped(self) -> tuple[str, ...]:
        """Those of the folder."""
        folder = importlib.import_module(self.package)
        return tuple(sorted({module.name for module in pkgutil.iter_modules(folder.__path__)} - CONTRACT))

    def made(self, given: T | type[T] | str, parameters: Mapping[str, Any]) -> T:
        """An object as it is, a class or a name as in YAML with its parameters."""
        if isinstance(given, str):
            return self.load(given, parameters, folder=Path())
        return given(**parameters) if isinstance(given, type) else given

    def load(self, name: str, params: Mapping[str, Any], *, folder: Path) -> T:
        """The one called `name` with its parameters; a `file.py:Class` is looked for in `folder` first.

        Raises UserError for a name that leads nowhere and for parameters that do not go together, and pydantic's
        ValidationError, with the parameters as locations, for each that the class does not take.
        """
        kind = self.find(name, folder=folder)
        values = dict(_parameters_model(kind).model_validate(dict(params)))
        try:
            return kind(**values)
        except ValueError as error:
            raise UserError(Problem(self.key, str(error), values, f"see `simbatch {self.see}`")) from error

    def schema(self, name: str) -> dict[str, Any]:
        """The JSON Schema of a named one's parameters, with its docstring as the description."""
        kind = self.find(name, folder=Path())
        return {**_parameters_model(kind).model_json_schema(), "description": inspect.getdoc(kind) or ""}

    def find(self, name: str, *, folder: Path) -> type[T]:
        """The class that a name stands for."""
        if name in self.shipped:
            return self._shipped_class(name)
        target = _offered(self.group).get(name) or name
        where, colon, class_name = target.rpartition(":")
        if not colon or not where or not class_name:
            if name.endswith(".py"):
                raise self._error("a file, but which class in it?", name, f"write {name}:Class")
            near = get_close_matches(name, self.names(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.names())}; {OWN}"
            raise self._error(f"no such {self.word}", name, hint)
        module = self._module_of_file(where, folder, name) if where.endswith(".py") else self._module(where, name)
        kind = getattr(module, class_name, None)
        if isinstance(kind, type) and issubclass(kind, self.base):
            return kind
        found = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, self.base)]
        own = [key for key in found if vars(module)[key].__module__ == module.__name__]
        rule = f"{where} has no subclass of {self.public} called {class_name}"
        raise self._error(rule, name, f"it has {', '.join(own)}" if own else f"derive your class from {self.public}")

    def _error(self, rule: str, name: str, mend: str) -> UserError:
        return UserError(Problem(f"{self.key}.name", rule, name, mend))

    def _shipped_class(self, name: str) -> type[T]:
        module = importlib.import_module(f"{self.package}.{name}")
        kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, self.base)]
        (kind,) = (kind for kind in kinds if kind.__module__ == module.__name__)
        return kind

    def _module(self, name: str, reference: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:
            mend = "install the package or set PYTHONPATH; a file is named as file.py:Class"
            raise self._error(f"cannot import {name}: {error}", reference, mend) from error

    def _module_of_file(self, where: str, folder: Path, reference: str) -> ModuleType:
        path = next((p for p in (folder / where, Path(where)) if p.is_file()), None)
        if path is None:
            mend = f"give its path from {folder.resolve()} or from the current folder"
            raise self._error(f"no file {where}", reference, mend)
        name = f"simbatch_{self.word}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the user's folder is not ours
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            place, mend = place_of(error)
            rule = f"the {self.word}'s file cannot be run: {type(error).__name__}: {error}"
            raise UserError(Problem(place, rule, reference, mend)) from error
        finally:
            sys.dont_write_bytecode = writes_bytecode
        return module


@cache
def _offered(group: str) -> dict[str, str]:
    """What installed packages offer, by name; looked up once, since it reads the metadata of every package."""
    return {point.name: point.value for point in entry_points(group=group)}


def _parameters_model(kind: type[Any]) -> type[BaseModel]:
    """The class's parameters as a pydantic model: numbers are numbers, unknown names are errors."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(kind, include_extras=True)
    parameters: dict[str, Any] = {
        field.name: (hints[field.name], ... if field.default is MISSING else field.default) for field in fields(kind)
    }
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model(kind.__name__, __config__=config, **parameters)


def _folders(package: str) -> list[str]:
    """Where a package of ours lies, whether or not it is loaded."""
    spec = importlib.util.find_spec(package)
    return list(spec.submodule_search_locations or ()) if spec is not None else []


_OURS = tuple(
    f"{Path(folder).resolve()}/"
    for name in ("simbatch", "simbatch.sim", "simbatch.policies")
    for folder in _folders(name)
)
_OTHERS = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib"))

_BASES = {__name__, f"{__name__}.policy", f"{__name__}.router"}


def place_of(error: BaseException, own: object = None) -> tuple[str, str]:
    """`my/policy.py:17`, and to mend that line: the last one of the user's that `error` came through.

    That is a line of the files in which `own` (a class, a function) and its bases are written, or of a file that
    belongs neither to simbatch nor to Python nor to an installed package; else the very last line.
    """
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{_shown(error.filename)}:{error.lineno}", _mend(error.text)
    files = _files_of(own)
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if frame.filename in files or not _is_foreign(frame.filename)]
    if not users and isinstance(own, type) and files:  # from what is made of the class, as its __init__
        return f"{_shown(inspect.getfile(own))}:{inspect.getsourcelines(own)[1]}", "mend the class"
    frame = (users or list(frames))[-1]
    return f"{_shown(frame.filename)}:{frame.lineno}", _mend(frame.line)


def defined_at(method: Callable[..., object]) -> str:
    """`my/policy.py:12`: where a method begins."""
    code: CodeType | None = getattr(inspect.unwrap(method), "__code__", None)
    return f"{_shown(code.co_filename)}:{code.co_firstlineno}" if code else getattr(method, "__name__", "?")


def _mend(line: str | None) -> str:
    return f"mend the line: {line.strip()}" if line and line.strip() else "mend the code"


def _files_of(own: object) -> set[str]:
    kinds = [kind for kind in own.__mro__ if kind.__module__ not in _BASES] if isinstance(own, type) else [own]
    found = set()
    for kind in kinds:
        try:
            found.add(inspect.getfile(kind))  # type: ignore[arg-type]  # whatever has none is no harm
        except (TypeError, OSError):
            continue
    return found


def _is_foreign(file: str) -> bool:
    return file.startswith((*_OURS, *_OTHERS, "<frozen", "<string>"))  # the latter: what dataclasses make


def _shown(file: str) -> str:
    """From here on, where that is shorter."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
