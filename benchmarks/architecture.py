"""The picture of the architecture in docs/design.md, drawn from the imports. `python -m benchmarks.architecture`.

A room is a package, and an arrow leads from a room to one that it imports. An arrow is left out where a longer way of
arrows says the same: what remains shows the order in which the rooms stand. `tests/test_structure.py` holds the
project to the rules that are counted here.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "design.md"
FOLDERS = ("sim", "policies", "routers", "profiler", "simbatch")
BEGIN, END = "<!-- drawn by benchmarks.architecture -->\n", "<!-- end of what is drawn -->\n"

Graph = Mapping[str, frozenset[str]]


def modules() -> dict[str, Path]:
    """Every module that is installed, by its dotted name."""
    return {_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}


def import_graph(*, when_loaded: bool) -> Graph:
    """What each module imports of the project: all of it, or only what is imported when the module is loaded.

    The rest stands in functions (what is slow to import) or below `if TYPE_CHECKING` (names for a type checker).
    """
    files = modules()
    return {name: frozenset(_imported(name, path, files, when_loaded)) - {name} for name, path in files.items()}


def circles(graph: Graph) -> list[list[str]]:
    """The sets of modules each of which imports, by some way, all others of its set."""
    names = sorted(graph)
    index = {name: i for i, name in enumerate(names)}
    edges = [(index[a], index[b]) for a in names for b in graph[a]]
    rows, columns = np.array(edges, dtype=int).reshape(-1, 2).T
    matrix = csr_array((np.ones(len(edges)), (rows, columns)), shape=(len(names), len(names)))
    _, label = connected_components(matrix, directed=True, connection="strong")
    sets = defaultdict(list)
    for name, i in zip(names, label, strict=True):
        sets[i].append(name)
    return [members for members in sets.values() if len(members) > 1]


def longest_chain(graph: Graph) -> list[str]:
    """The longest way along imports, in a graph without circles."""

    @cache
    def chain(name: str) -> tuple[str, ...]:
        return (name, *max(map(chain, sorted(graph[name])), key=len, default=()))

    return list(max(map(chain, sorted(graph)), key=len))


def classes_defined_twice() -> dict[str, list[str]]:
    """Public names of classes that two modules define, with the modules."""
    where = defaultdict(list)
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(module)
    return {name: found for name, found in sorted(where.items()) if len(found) > 1}


def rooms(graph: Graph) -> Graph:
    """What each package imports of other packages; what a room imports of itself is left out."""
    files = modules()

    def room(name: str) -> str:
        return name if files[name].name == "__init__.py" else name.rpartition(".")[0]

    found: dict[str, set[str]] = defaultdict(set)
    for name, imported in graph.items():
        found[room(name)] |= {room(other) for other in imported} - {room(name)}
    return {name: frozenset(others) for name, others in found.items()}


def picture() -> str:
    """The rooms as a flow chart in Mermaid's language, which code hosts draw."""
    graph = rooms(import_graph(when_loaded=True))
    lines = ["```mermaid", "flowchart TD"]
    lines += [f'  {_node(name)}["{_label(name)}"]' for name in sorted(graph)]
    lines += [f"  {_node(name)} --> {_node(other)}" for name in sorted(graph) for other in _direct(graph, name)]
    return "\n".join([*lines, "```", ""])


def page_with(drawn: str, page: str) -> str:
    """The page with what stands between the two marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + drawn + END + after


def main() -> None:
    everything = import_graph(when_loaded=False)
    PAGE.write_text(page_with(picture(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{len(modules())} modules in {len(rooms(everything))} rooms, drawn in {PAGE.relative_to(ROOT)}")
    chain = longest_chain(import_graph(when_loaded=True))
    print(f"the longest chain of imports has {len(chain)}: {' > '.join(chain)}")
    for members in circles(everything):
        print(f"a circle of {len(members)}: {', '.join(members)}")
    for name, found in classes_defined_twice().items():
        print(f"{name} is defined in {', '.join(found)}")


def _name(path: Path) -> str:
    folder, *parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(["simbatch", *([] if folder == "simbatch" else [folder]), *parts])


def _imported(name: str, path: Path, files: Mapping[str, Path], when_loaded: bool) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _import_statements(ast.parse(path.read_text(encoding="utf-8")), when_loaded):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
            continue
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            if full in files or base in files:
                yield full if full in files else base


def _import_statements(node: ast.AST, when_loaded: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not (when_loaded and _is_later(child)):
            yield from _import_statements(child, when_loaded)


def _is_later(node: ast.AST) -> bool:
    """Whether what stands in it is not run when the module is loaded."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def _direct(graph: Graph, name: str) -> Iterable[str]:
    """The rooms that a room imports and that no other room it imports leads to; between rooms in a circle, all."""

    def is_above(other: str) -> bool:
        return name not in _reached(graph, other)

    above = {other for other in graph[name] if is_above(other)}
    return sorted(b for b in graph[name] if b not in above or not any(b in _reached(graph, c) for c in above - {b}))


def _reached(graph: Graph, name: str) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        new = graph.get(todo.pop(), frozenset()) - found
        found |= new
        todo += new
    return found


def _node(name: str) -> str:
    return name.replace(".", "_")


def _label(name: str) -> str:
    return name.removeprefix("simbatch.") or name


if __name__ == "__main__":
    main()
