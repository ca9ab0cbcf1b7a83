"""The batch table of any profile, without a GPU: every batch size simulated, all its requests sent at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.profiler.profile.batches import KNEE_FIGURES, batch_sizes, knee, plot_throughput
from simbatch.sim.cost.gpus import GIB, GPUS
from simbatch.sim.cost.profile import MeasuredProfile, Profile
from simbatch.sim.errors import UserError
from simbatch.sim.statistics import RULE
from simbatch.sim.text import table

if TYPE_CHECKING:
    from simbatch.profiler.model.roofline import Roofline

LARGEST = 256  # of the sizes that are shown unasked
COLUMNS = ("batch", "step ms", "output tok/s", "TTFT ms", "TPOT ms", "E2EL ms", "KV GiB", "roofline", "")


def default_sizes(profile: Profile) -> list[int]:
    """1, 2, 4 ... up to vLLM's default limit on this GPU, 256 at most."""
    return batch_sizes(min(LARGEST, profile.default_max_num_seqs))


def lengths_within(profile: Profile) -> tuple[int, int]:
    """Prompt and output tokens of the table's requests: 512 and 128, or what the profile's length allows."""
    output_len = max(2, min(128, profile.max_model_len // 4))
    return max(1, min(512, profile.max_model_len - output_len)), output_len


def predicted_batches(
    profile: Profile, reference: str | Mapping[str, Any], sizes: Sequence[int], prompt_len: int, output_len: int
) -> list[dict[str, Any]]:
    """Rows of the table by the keys of a measured one; `reference` is the profile as a scenario has it.

    Raises UserError for requests that the profile's KV cache cannot hold.
    """
    return [_row(profile, reference, size, prompt_len, output_len) for size in sizes]


def _row(
    profile: Profile, reference: str | Mapping[str, Any], size: int, prompt_len: int, output_len: int
) -> dict[str, Any]:
    from simbatch import Scenario, simulate

    lengths = {
        "prompt_len": {"distribution": "fixed", "mean": prompt_len},
        "output_len": {"distribution": "fixed", "mean": output_len},
    }
    tokens = max(profile.default_max_num_batched_tokens, size)
    content = {
        "profile": reference,
        "engine": {"max_num_seqs": size, "max_num_batched_tokens": tokens, "enable_prefix_caching": False},
        "workload": {"num_prompts": size, "arrival": {"process": "all_at_once"}, **lengths},
    }
    summary = simulate(Scenario.from_dict(content)).summary
    block = profile.default_block_size
    blocks = size * -(-(prompt_len + output_len - 1) // block)
    usable = profile.num_gpu_blocks_for() - 1
    token_bytes = profile.memory.kv_bytes_per_token if isinstance(profile, MeasuredProfile) else 0
    return {
        "batch_size": size,
        "prompt_len": prompt_len,
        "output_len": output_len,
        "step_ms": summary["median_itl_ms"],
        "output_throughput": summary["output_throughput"],
        "ttft_ms": summary["mean_ttft_ms"],
        "tpot_ms": summary["mean_tpot_ms"],
        "e2el_ms": summary["mean_e2el_ms"],
        "kv_gib": min(blocks, usable) * block * token_bytes / GIB,
        "kv_full": blocks > usable,
    }


def roofline_shares(roofline: Roofline | None, rows: Sequence[dict[str, Any]]) -> Iterator[float | None]:
    """The datasheet's shortest time for a step of the whole batch decoding, over what it takes; None without one.

    None too where the KV cache cannot hold the batch: it never decodes whole.
    """
    import numpy as np

    from simbatch.profiler.records import Steps

    for row in rows:
        if roofline is None or not row["step_ms"] or row["kv_full"]:
            yield None
            continue
        size, context = row["batch_size"], row["prompt_len"] + row["output_len"] // 2
        columns = (0, 0, 0, 0, size, size * context, context, context)
        steps = Steps(*(np.array([value], dtype=np.int64) for value in columns))
        yield float(roofline.utilisation(steps, np.array([row["step_ms"] / 1e3]))[0])


def roofline_of_profile(profile: Profile) -> Roofline | None:
    """What the datasheet allows for a profile's model; None where the model or the GPU is not known."""
    from simbatch.profiler.model.published import find_model
    from simbatch.profiler.model.roofline import roofline_of

    if not isinstance(profile, MeasuredProfile) or profile.gpu not in GPUS:
        return None
    shape = profile.quantisation, profile.kv_cache_dtype, profile.tensor_parallel_size
    try:
        return roofline_of(find_model(profile.model)[0], GPUS[profile.gpu], *shape)
    except UserError:
        return None


def batch_table(rows: Sequence[dict[str, Any]], shares: Sequence[float | None]) -> list[str]:
    """One row a batch size, the knee marked."""
    at, lines = knee(rows), []
    for row, share in zip(rows, shares, strict=True):
        latencies = [_ms(row[key]) for key in ("ttft_ms", "tpot_ms", "e2el_ms")]
        kv = f"{row['kv_gib']:.2f}" if row["kv_gib"] else "-"
        marks = ["knee"] if row["batch_size"] == at else []
        marks += ["KV full"] if row["kv_full"] else []
        figures = (_ms(row["step_ms"]), f"{row['output_throughput']:,.0f}", *latencies, kv)
        used = "-" if share is None else f"{share:.0%}"
        lines.append((str(row["batch_size"]), *figures, used, ", ".join(marks)))
    return table(COLUMNS, lines, num_left=0)


def table_notes(profile: Profile, rows: Sequence[dict[str, Any]], roofline: Roofline | None) -> list[str]:
    """What the table's figures are."""
    first = rows[0]
    notes = [
        f"simulated: {first['prompt_len']:,} prompt and {first['output_len']:,} output tokens each, all sent at once; "
        "latencies are means as a client sees them, the step is the median gap between tokens",
        f"knee of {KNEE_FIGURES}: {RULE}" if knee(rows) else "no knee: throughput and latency grow alike",
    ]
    if isinstance(profile, MeasuredProfile) and profile.tensor_parallel_size > 1:
        notes.append(f"KV of one of {profile.tensor_parallel_size} GPUs")
    if roofline is not None:
        notes.append("roofline: the shortest step that the datasheet allows over the one that is simulated")
    if any(row["kv_full"] for row in rows):
        notes.append("KV full: the batch needs more blocks than there are, so requests queue or are preempted")
    if profile.is_estimate:
        notes.append("nobody measured this profile: its step times are an estimate")
    return notes


def plot_batches(profile: Profile, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Throughput over step latency with the knee, and latencies over the batch size, to a PNG."""
    first = rows[0]
    lengths = f"{first['prompt_len']:,} + {first['output_len']:,} tokens"
    plot_throughput(rows, f"{profile.name}, {lengths}, simulated", path)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
