"""Files that readers of the docs bring (results and logs of servers, scenarios), as those programs make them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.recorder_planted import served, server, write_recorded
from benchmarks.stream_planted import planted, streams_of
from tests.bench_files import closed_loop, ran, vllm
from tests.made_samples import LLAMA_8B, made_samples, write_samples
from tests.test_fit_streams import result_of

ROOT = Path(__file__).parents[1]
SCENARIO = """
profile: h100-llama-3.1-8b-bf16
workload:
  num_prompts: 200
  request_rate: 5
  prompt_len: {distribution: lognormal, mean: 800, cv: 1.0, max: 4096}
  output_len: {distribution: lognormal, mean: 200, cv: 0.8}
slo: {ttft_ms: 1000, tpot_ms: 50}
"""
POLICY = '''from simbatch import Policy


class ShortFirst(Policy):
    """Serve the shortest prompt first."""

    def order(self, request):
        return request.num_prompt_tokens


class MyPolicy(ShortFirst):
    pass
'''


def write_file(name: str, folder: Path) -> None:
    """The file of this name as a reader would have it, at its place in the folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    FILES[name](path)


def _text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _log(path: Path) -> None:
    rows = [
        f"2026-11-27T09:{i // 10 % 60:02}:{i % 10 * 6:02}.120+01:00;llama;{300 + 37 * i % 900};{40 + i % 50}"
        for i in range(500)
    ]
    _text("time;model;usage.prompt_tokens;usage.completion_tokens\n" + "\n".join(rows) + "\n", path)


def _conversations(path: Path) -> None:
    talk = [{"from": "human", "value": "why? " * 40}, {"from": "gpt", "value": "because. " * 30}] * 2
    _text(json.dumps([{"id": f"c{i}", "conversations": talk} for i in range(20)]), path)


def _streams(load: int, path: Path) -> None:
    given = planted(0)
    _text(json.dumps(result_of(streams_of(given, given.loads[load], 0, number=150))), path)


def _steps(path: Path) -> None:
    given = server(0)
    write_recorded(path, served(given, 4, 6, 120), given, has_device=True)


def _result(path: Path) -> None:
    path = path / "run.json" if path.name == "recorded" else path
    path.parent.mkdir(exist_ok=True)
    _text(json.dumps(vllm(ran(closed_loop(4)))), path)


FILES: dict[str, Callable[[Path], object]] = {
    "gateway.csv": _log,
    "scenario.yaml": partial(_text, SCENARIO),
    "mine.yaml": partial(_text, SCENARIO),
    "sharegpt_conv_128.json": _conversations,
    "load10.json": partial(_streams, 0),
    "load100.json": partial(_streams, 1),
    "c4.json": partial(_streams, 0),
    "c32.json": partial(_streams, 1),
    "steps.jsonl": _steps,
    "mine.samples.jsonl": lambda path: write_samples(made_samples(), path),
    "result.json": _result,
    "recorded": _result,
    "mine.py": partial(_text, POLICY),
    "mine.json": lambda path: shutil.copy(ROOT / "profiles" / "h100-llama-3.1-8b-bf16-measured.json", path),
    "llama-3.1-8b/config.json": lambda path: _text(json.dumps(LLAMA_8B), path),
}
