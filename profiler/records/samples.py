"""The samples file: what an engine is, and every step that was measured on it, one JSON object a line.

It only ever grows, a line at a time, so what was measured before a crash or Ctrl-C is kept; a last line that was cut
off is left out when reading. The first line is the engine's facts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simbatch.profiler.records import Floats, Ints, Steps
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import checked, json_value

FORMAT = 1


class BatchEntry(NamedTuple):
    """One request in a step: tokens computed before, tokens scheduled, and whether that one token is a decode."""

    num_computed_tokens: int
    num_tokens: int
    is_decode: bool


class StepSample(NamedTuple):
    """One engine step; `episode` is the draw of the design that it belongs to, and what is held out together."""

    episode: int
    is_canary: bool  # a repeat of one fixed step, against drift: not fitted
    duration_s: float
    entries: tuple[BatchEntry, ...]


class Admission(NamedTuple):
    """What the host took to take one request in (`add_request`), s."""

    duration_s: float
    num_prompt_tokens: int


class EngineFacts(BaseModel):
    """The engine that was measured, as vLLM resolved it; bytes are per GPU, None where vLLM does not say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    model: str
    architecture: dict[str, Any] = Field(description="the model's config.json")
    gpu: str = Field(description="a short name of `simbatch.sim.cost.gpus`, or cpu")
    gpu_name: str = Field(description="as the driver says it")
    total_bytes: int = Field(gt=0)
    quantisation: str
    kv_cache_dtype: str = Field(description="resolved, never auto")
    tensor_parallel_size: int = Field(ge=1)
    vllm_version: str
    gpu_memory_utilization: float
    max_num_seqs: int = Field(gt=0)
    max_num_batched_tokens: int = Field(gt=0)
    max_model_len: int = Field(gt=0)
    block_size: int = Field(gt=0)
    num_gpu_blocks: int = Field(gt=1)
    kv_bytes_per_token: int = Field(gt=0)
    kv_cache_bytes: int = Field(gt=0)
    kv_cache_memory_bytes: int | None = Field(default=None, description="vLLM's setting; none: it took what was left")
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    graphs_bytes: int | None = None
    async_scheduling: bool = False
    api_server_count: int = 1
    enable_prefix_caching: bool = True
    seed: int = 0
    command: str = ""
    warnings: tuple[str, ...] = ()


@dataclass
class Samples:
    """Everything in a samples file; `batches` are the rows of the batch table, `notes` what happened on the way."""

    engine: EngineFacts
    steps: list[StepSample] = field(default_factory=list)
    admissions: list[Admission] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)

    def fitted(self) -> list[StepSample]:
        """The steps that are no canaries."""
        return [step for step in self.steps if not step.is_canary]


class SampleWriter:
    """Appends to a samples file; `resume` goes on with one that was begun with the same facts."""

    def __init__(self, path: Path, engine: EngineFacts, *, resume: bool = False) -> None:
        self.path = path
        if resume and path.exists():
            _cut_last_line(path)
        is_new = not (resume and path.exists() and path.stat().st_size)
        self._file = path.open("w" if is_new else "a", encoding="utf-8")
        if is_new:
            self._write("engine", engine.model_dump(mode="json"))

    def step(self, step: StepSample) -> None:
        """One step."""
        entries = [[entry.num_computed_tokens, entry.num_tokens, int(entry.is_decode)] for entry in step.entries]
        content = {"episode": step.episode, "is_canary": step.is_canary, "duration_s": round(step.duration_s, 9)}
        self._write("step", content | {"entries": entries})

    def admission(self, admission: Admission) -> None:
        """One request taken in."""
        self._write("admission", admission._asdict())

    def batch(self, row: dict[str, Any]) -> None:
        """One row of the batch table."""
        self._write("batch", row)

    def note(self, note: dict[str, Any]) -> None:
        """What happened: resumed, drifted, out of memory."""
        self._write("note", note)

    def close(self) -> None:
        """Everything is on disk."""
        self._file.close()

    def _write(self, record: str, content: dict[str, Any]) -> None:
        self._file.write(json.dumps({"record": record, **content}, ensure_ascii=False) + "\n")
        self._file.flush()


def read_samples(path: Path) -> Samples:
    """Read a samples file; raises UserError with file and line for what is malformed."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(Problem(str(path), f"cannot be read: {reason}", mend="name a samples file")) from None
    records = [(number, _parsed(path, number, line)) for number, line in enumerate(lines[:-1], 1) if line]
    first = records[0][1] if records else {}
    if first.get("record") != "engine":
        rule = "not a samples file: its first line must be the engine's facts"
        raise UserError(Problem(f"{path}:1", rule, mend="`simbatch profile` writes one"))
    engine = checked(EngineFacts, {key: value for key, value in first.items() if key != "record"}, f"{path}:1")
    samples = Samples(engine)
    for number, content in records[1:]:
        try:
            _READERS[content.pop("record")](samples, content)
        except (KeyError, TypeError, ValueError) as error:
            rule = f"not a record of a samples file: {type(error).__name__} {error}"
            raise UserError(Problem(f"{path}:{number}", rule, mend="remove the line, or measure again")) from None
    return samples


def steps_of(samples: Iterable[StepSample]) -> tuple[Steps, Floats, Ints]:
    """The steps' features, their durations in s, and their episodes."""
    chosen = list(samples)
    rows = np.array([_features(step.entries) for step in chosen], dtype=np.int64).reshape(len(chosen), 8)
    durations = np.array([step.duration_s for step in chosen], dtype=np.float64)
    return Steps(*rows.T), durations, np.array([step.episode for step in chosen], dtype=np.int64)


def _features(entries: Sequence[BatchEntry]) -> tuple[int, ...]:
    contexts = [entry.num_computed_tokens for entry in entries if entry.is_decode]
    prefills = [(entry.num_computed_tokens, entry.num_tokens) for entry in entries if not entry.is_decode]
    return (
        len(prefills),
        sum(q for _, q in prefills),
        sum(h + q for h, q in prefills),
        sum(q * (2 * h + q) for h, q in prefills),
        len(contexts),
        sum(contexts),
        min(contexts, default=0),
        max(contexts, default=0),
    )


def _add_step(samples: Samples, content: dict[str, Any]) -> None:
    entries = tuple(BatchEntry(int(computed), int(n), bool(decode)) for computed, n, decode in content["entries"])
    duration_s = float(content["duration_s"])
    if not 0 < duration_s < math.inf or not entries:
        raise ValueError("a step lasts longer than 0 s and computes something")
    if any(computed < 0 or n < 1 or (decode and n > 1) for computed, n, decode in entries):
        raise ValueError("an entry has 0 or more tokens computed, 1 or more scheduled, and a decode has one")
    samples.steps.append(StepSample(int(content["episode"]), bool(content["is_canary"]), duration_s, entries))


def _add_admission(samples: Samples, content: dict[str, Any]) -> None:
    duration_s, num_prompt_tokens = float(content["duration_s"]), int(content["num_prompt_tokens"])
    if not 0 <= duration_s < math.inf:
        raise ValueError("an admission takes 0 s or longer")
    samples.admissions.append(Admission(duration_s, num_prompt_tokens))


_READERS: dict[str, Callable[[Samples, dict[str, Any]], None]] = {
    "step": _add_step,
    "admission": _add_admission,
    "batch": lambda samples, content: samples.batches.append(content),
    "note": lambda samples, content: samples.notes.append(content),
}


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    mend = "remove the line" if number > 1 else "name a samples file; `simbatch profile` writes one"
    content = json_value(line, path, line=number, mend=mend)
    if not isinstance(content, dict) or "record" not in content:
        raise UserError(Problem(f"{path}:{number}", "must be an object with a key record", mend=mend))
    return content


def _cut_last_line(path: Path) -> None:
    """Remove what stands after the last line's end: a write that was interrupted."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
