"""A run on a server as `vllm bench serve --save-result --save-detailed` writes it, and as the simulator records runs.

The keys are those of vllm/benchmarks/serve.py (0.32); everything of ours stands under `simbatch`. A folder keeps each
run when it has ended, for --resume (`KeptRuns`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.records.real_run import Lines, RealRun, seen_outside, with_steps
from simbatch.profiler.server.client import Sent
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import FINISHED, NEVER_PS, RequestColumns
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import plain, write_all, write_json
from simbatch.sim.json_values import json_object
from simbatch.sim.metrics.columns import RunFacts
from simbatch.sim.scenario import Resolved
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.turns import Turns

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ServedRun:
    """What a client noted of one run; `client` is how it kept up, `prompt_seed` what its prompts were made from.

    `lines` are those of a recorder in the server, whose clock is at `origin_s` when the run begins.
    """

    rows: Sequence[Sent]
    client: Mapping[str, float]
    prompt_seed: int
    origin_s: float = 0.0
    lines: Lines = ()

    @property
    def failed(self) -> list[Sent]:
        """Those that did not end well."""
        return [row for row in self.rows if row.error]

    def run(self, config: EngineConfig, facts: RunFacts, turns: Turns | None = None) -> RealRun:
        """The requests that ended well, as a run of such an engine; with its steps where they were recorded.

        `turns` are those of the source, where requests are turns of sessions.
        """
        good = [row for row in self.rows if not row.error]
        n = len(good)
        nothing, zeros = np.full(n, NEVER_PS, dtype=np.int64), np.zeros(n, dtype=np.int64)
        gaps = [np.diff(row.chunk_s) for row in good]
        requests = RequestColumns(
            arrival_ps=_ps([row.sent_s for row in good]),
            scheduled_ps=nothing,
            first_token_ps=_ps([row.chunk_s[0] for row in good]),
            finish_ps=_ps([row.chunk_s[-1] for row in good]),
            num_prompt_tokens=np.array([row.num_prompt_tokens for row in good], dtype=np.int64),
            num_output_tokens=np.array([row.num_output_tokens for row in good], dtype=np.int64),
            num_cached_tokens=np.array([row.num_cached_tokens for row in good], dtype=np.int64),
            num_preemptions=zeros,
            priority=zeros,
            status=np.full(n, FINISHED, dtype=np.int8),
            row=None if turns is None else np.array([row.row for row in good], dtype=np.int64),
        )
        run = RealRun(seen_outside(requests, gaps, config, turns), facts, None, [gap.tolist() for gap in gaps])
        indices = [index for index, row in enumerate(self.rows) if not row.error]
        return with_steps(run, self.lines, indices, self.origin_s) if self.lines else run

    def bench_result(self, run: RealRun, resolved: Resolved, model: str) -> dict[str, Any]:
        """What `vllm bench serve` would have written."""
        workload = resolved.scenario.workload
        rate = getattr(workload, "request_rate", None)
        return {
            **self.detail(model, workload.max_concurrency),
            "request_rate": rate if rate is not None and math.isfinite(rate) else "inf",
            "burstiness": getattr(workload, "burstiness", None) or 1.0,
            **{key: value for key, value in run.result.summary.items() if key != "simbatch"},
            "failed": len(self.failed),
        }

    def detail(self, model: str, max_concurrency: int | None) -> dict[str, Any]:
        """What was sent and what came, by the keys of `vllm bench serve --save-detailed`; without figures."""
        rows = self.rows
        return {
            "date": time.strftime("%Y%m%d-%H%M%S"),
            "endpoint_type": "openai",
            "backend": "openai",
            "label": None,
            "model_id": model,
            "tokenizer_id": model,
            "num_prompts": len(rows),
            "request_rate": "inf",
            "burstiness": 1.0,
            "max_concurrency": max_concurrency,
            "completed": len(rows) - len(self.failed),
            "failed": len(self.failed),
            "duration": max((row.chunk_s[-1] for row in rows if row.chunk_s), default=0.0),
            "max_output_tokens_per_s": most_in_a_second(rows),
            "input_lens": [row.num_prompt_tokens for row in rows],
            "output_lens": [row.num_output_tokens for row in rows],
            "ttfts": [row.chunk_s[0] - row.sent_s if row.chunk_s else 0.0 for row in rows],
            "itls": [np.diff(row.chunk_s).tolist() for row in rows],
            "latencies": [row.chunk_s[-1] - row.sent_s if row.chunk_s else 0.0 for row in rows],
            "start_times": [row.sent_s for row in rows],
            "queue_times": [row.queued_s for row in rows],
            "generated_texts": ["" for _ in rows],
            "errors": [row.error for row in rows],
            "rtfx": 0.0,
            "simbatch": {
                "client": dict(self.client),
                "prompt_seed": self.prompt_seed,
                "origin_s": self.origin_s,
                "cached_tokens": [row.num_cached_tokens for row in rows],
                **({"rows": [row.row for row in rows]} if any(row.row >= 0 for row in rows) else {}),
            },
        }

    @classmethod
    def read(cls, content: Mapping[str, Any], lines: Lines = ()) -> ServedRun:
        """A run from what `bench_result` or `detail` has written."""
        columns = ("start_times", "queue_times", "input_lens", "output_lens", "ttfts", "itls", "errors")
        rows, ours = [], content["simbatch"]
        cached = ours.get("cached_tokens") or [0] * len(content["errors"])
        source_rows = ours.get("rows") or [NEVER_PS] * len(content["errors"])
        for sent_s, queued_s, n_in, n_out, ttft_s, itl_s, error, hit, row in zip(
            *(content[c] for c in columns), cached, source_rows, strict=True
        ):
            has_tokens = ttft_s > 0
            chunk_s = (sent_s + ttft_s + np.cumsum([0.0, *itl_s])).tolist() if has_tokens else []
            rows.append(Sent(sent_s, queued_s, n_in, n_out, hit, chunk_s, error, row))
        return cls(rows, ours["client"], ours["prompt_seed"], ours.get("origin_s", 0.0), lines)


def most_in_a_second(rows: Sequence[Sent]) -> float:
    """The most events with tokens in one second of the run, counted from its begin as `vllm bench serve` does."""
    at_s = np.array([moment_s for row in rows for moment_s in row.chunk_s])
    if not len(at_s):
        return 0.0
    return float(np.bincount((at_s - min(row.sent_s for row in rows)).astype(np.int64)).max())


def _ps(times_s: Sequence[float] | NDArray[np.float64]) -> Ints:
    return np.round(np.asarray(times_s, dtype=np.float64) * PS_PER_S).astype(np.int64)


RESULT_FILE = "result.json"  # of each run: that of `vllm bench serve --save-detailed`; with it a run is whole
CUT_FILE = "cut-off.json"  # of a run that did not end: the requests that did
STEPS_FILE = "steps.jsonl"  # what the recorder of a server of our own wrote meanwhile
RUN_FILES = (RESULT_FILE, CUT_FILE, STEPS_FILE)
SETTING_FILE = "replay.json"
MAY_DIFFER = ("command", "seed", "total_bytes", "weights_bytes", "activation_bytes", "graphs_bytes", "kv_cache_bytes")


@dataclass(frozen=True)
class KeptRuns:
    """A folder with the runs of one scenario on one server; run 1 is in `run-1`."""

    folder: Path

    def begin(self, setting: Mapping[str, Any], *, resume: bool) -> int:
        """Remember what is replayed; returns how many whole runs of it there are to go on with.

        `setting` is plain data. Raises UserError when the folder's runs are of another setting; without `resume` they
        go away.
        """
        path, content = self.folder / SETTING_FILE, plain(setting)
        if resume and path.exists():
            before = json_object(path.read_text(encoding="utf-8"), path)
            for part in content:
                if _same(before.get(part)) != _same(content[part]):
                    rule = f"the runs in it are of another {part}"
                    raise UserError(Problem(str(self.folder), rule, mend="leave out --resume, or name another folder"))
            return self._num_whole()
        for number in range(self._num_whole(), 0, -1):
            for name in RUN_FILES:
                (self.of(number) / name).unlink(missing_ok=True)
        write_all(self.folder, {SETTING_FILE: lambda target: write_json(target, content)})
        return 0

    def keep(self, number: int, name: str, content: Mapping[str, Any], steps: bytes = b"") -> None:
        """Write a run, or what there is of it; `steps` are the recorder's lines."""
        writers: dict[str, Callable[[Path], None]] = {name: lambda path: write_json(path, content)}
        if steps:
            writers = {STEPS_FILE: partial(_write, steps), **writers}
        write_all(self.of(number), writers, RUN_FILES)

    def of(self, number: int) -> Path:
        """The folder of a run."""
        return self.folder / f"run-{number}"

    def _num_whole(self) -> int:
        number = 0
        while (self.of(number + 1) / RESULT_FILE).exists():
            number += 1
        return number


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _same(part: Any) -> Any:
    return {key: value for key, value in part.items() if key not in MAY_DIFFER} if isinstance(part, dict) else part
