"""A sweep as tables: a row per cell, and a point per setting with intervals over its replications."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.metrics.registry import possible
from simbatch.sim.results.runs import Summary
from simbatch.sim.search.cells import Cell
from simbatch.sim.statistics.intervals import mean_interval

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
LAST = ("overloaded", "warnings", "key")  # columns after the metrics
_NO_METRICS = (
    "scenario",
    "seed",
    "policy",
    "engine",
    "engine_defaults",
    "profile",
    "slo",
    "rejected_reasons",
    "warnings",
)


def row_of(cell: Cell, keys: Sequence[str], summary: Summary) -> Row:
    """The cell's settings by `keys` (None where it has none), its seed, every figure of its summary, its warnings."""
    warnings = summary["simbatch"]["warnings"]
    return {
        **{key: cell.settings.get(key) for key in keys},
        "seed": cell.seed,
        **metrics_of(summary),
        "overloaded": any(warning.startswith("Overloaded") for warning in warnings),
        "warnings": " ".join(warnings),
        "key": cell.key,
    }


def metrics_of(summary: Summary) -> dict[str, float | None]:
    """The figures by the names of docs/reference.md: `p99_ttft_ms`, `kv_cache.mean_use`."""
    ours = {key: value for key, value in summary["simbatch"].items() if key not in _NO_METRICS}
    share = summary["simbatch"]["profile"]["share_of_steps_in_range"]
    standard = {key: value for key, value in summary.items() if key != "simbatch"}
    return dict(_figures(standard | ours)) | {"profile.share_of_steps_in_range": share}


def _figures(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float | None]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _figures(value, f"{above}{key}.")
        elif key != "refused" and (value is None or isinstance(value, (int, float))):
            yield f"{above}{key}", value


def points_of(rows: Sequence[Row], keys: Sequence[str], *, is_resampled: bool = False) -> list[Row]:
    """The settings, `replications`, `overloaded_runs`, and of each metric its mean and where its 95 % interval ends.

    A metric that some replication does not have has no mean; fewer than two have no interval. `is_resampled`: the runs
    of a point are of one trace, drawn anew.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row[key] for key in keys]), []).append(row)
    metrics = [name for name in columns_of(rows) if name not in (*keys, "seed", *LAST)]
    return [_point(group, keys, metrics, is_resampled) for group in groups.values()]


def _point(group: Sequence[Row], keys: Sequence[str], metrics: Sequence[str], is_resampled: bool) -> Row:
    overloaded = sum(row["overloaded"] for row in group)
    point = {key: group[0][key] for key in keys} | {"replications": len(group), "overloaded_runs": overloaded}
    for name in metrics:
        values = [value for row in group if (value := row.get(name)) is not None]
        mean = low = high = None
        if len(values) == len(group):
            mean = values[0]
            if len(values) > 1:
                interval = possible(mean_interval(values, is_resampled=is_resampled), name)
                mean, low, high = interval.estimate, interval.low, interval.high
        point |= {name: mean, f"{name}.low": low, f"{name}.high": high}
    return point


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All columns, those that only some rows have (classes of priority) among the others."""
    names = dict.fromkeys(name for row in rows for name in row if name not in LAST)
    return [*names, *(name for name in LAST if rows and name in rows[0])]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Numbers to their last digit, nothing where there is none, mappings and lists as JSON."""
    columns, text = columns_of(rows), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_text(row.get(name)) for name in columns] for row in rows])
    path.write_text(text.getvalue(), encoding="utf-8")


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """The same, typed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = columns_of(rows)
    pq.write_table(pa.table({name: _column([row.get(name) for row in rows]) for name in columns}), path)


def _column(values: list[Any]) -> pa.Array[Any]:
    import pyarrow as pa

    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {bool}:
        return pa.array(values, pa.bool_() if kinds else pa.float64())
    if kinds <= {int, float}:
        return pa.array(values, pa.int64() if kinds == {int} else pa.float64())
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
