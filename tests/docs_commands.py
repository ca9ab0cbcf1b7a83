"""Every command that README and docs show, typed in an empty folder: `make docs-commands`, not `make test`.

A page's commands run in its order, in one folder, with the files that the page itself says to write; what a reader
brings (results and logs of servers, scenarios) is made as those programs make it. `SIMBATCH_BIN` is the folder of the
`simbatch` to run, by default the checkout's. Long ones are shortened by `FEWER`; with `DOCS_WHOLE=1` each is typed as
it stands there (half an hour).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks.planted import planted, served, server, streams_of, write_recorded
from tests.bench_files import closed_loop, ran, vllm, vllm_of_streams
from tests.made_samples import LLAMA_8B, made_samples, write_samples
from tests.test_docs import BLOCK

ROOT = Path(__file__).parents[1]
BIN = Path(os.environ.get("SIMBATCH_BIN", Path(sys.executable).parent)).resolve()
IS_WHOLE = bool(os.environ.get("DOCS_WHOLE"))
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SHELL = ("", "sh", "bash", "console")
PROGRAMS = ("simbatch", "python", "python3", "pip", "make", "vllm", "dask", "sbatch", "bash")
OWN_FILE = re.compile(
    r"(?:[Pp]ut this into `([\w.]+)`[^\n]*:\n\n)?```\w*\n(?:# ([\w.]+\.py)\n)?(.*?)^```$", re.DOTALL | re.M
)
NOT_RUN = {
    r"^(SIMBATCH_\w+=\S+ )?vllm ": "needs vLLM",
    r"^simbatch (serve|profile) ": "needs vLLM: make test-vllm runs them",
    r"^simbatch validate .*--(engine|server) ": "needs vLLM, or a server: make test-vllm runs them",
    r"^pip install ": "changes the environment that is tried",
    r"^python3 -m venv ": "the environment that is tried is one",
    r"^make ": "of a checkout's own environment: .ci/run runs them",
    r"^(dask|sbatch) |--scheduler tcp:": "needs a cluster: tests/test_sweep_run.py has one of this machine",
    r"^python3 benchmarks/on_gpu.py |^bash GPULAB/": "needs a GPU",
    r"^python -m benchmarks.gateway_sessions ": "needs two servers and a gateway",
    r" --tokenizer ": "needs the package tokenizers and a model's file",
    r" RUN/requests.jsonl | gpu/llmservingsim/": "needs measurements of others, which do not ship",
}
SYNTHETIC = "bursty|steady|long_prompts|static_batches|sweep"
FEWER = {  # the last of an option given twice counts
    rf"^simbatch (run|compare|sweep|tune) ({SYNTHETIC}) ": "--set workload.num_prompts=60",
    r" --replications (?!2)|^simbatch rank ": "--replications 2",
    r"^simbatch rank (?!.*--policy)": "--policy vllm --policy fair",
    r"^simbatch tune (?!.*--capacity)": "--trials 4 --confirm 0 --no-bands",
    r"^simbatch plan ": "--seconds 10 --no-bands",
    r"^simbatch policies check .*--cases": "--cases 10",
}


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
    _text(json.dumps(vllm_of_streams(streams_of(given, given.loads[load], 0, number=150))), path)


def _steps(path: Path) -> None:
    given = server(0)
    write_recorded(path, served(given, 4, 6, 120), given, has_device=True)


def _result(path: Path) -> None:
    path = path / "run.json" if path.name == "recorded" else path
    path.parent.mkdir(exist_ok=True)
    _text(json.dumps(vllm(ran(closed_loop(4)))), path)


# What a reader brings, by its name on a page.
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


def commands(page: str) -> Iterator[str]:
    """Those of its blocks, without prompts and comments; where it is tables of walks, the first cell of each row."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.finditer(rf"{BLOCK.pattern}|^\| `(simbatch [^`]+)` \| [\d.]+ \|", text, BLOCK.flags):
        language, body, cell = block.groups()
        lines = [cell] if cell else body.replace("\\\n", " ").splitlines() if language in SHELL else []
        for line in lines:
            command = re.sub(r"\s+", " ", re.sub(r"\s+#\s.*", "", line).removeprefix("$ ")).strip()
            words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
            if words and words[0] in PROGRAMS:
                yield command


def why_not(command: str) -> list[str]:
    return [pattern for pattern in NOT_RUN if re.search(pattern, command)]


def run(command: str, folder: Path) -> str:
    """Types it; what is wrong with it, or nothing."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COLUMNS")}
    environment |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "MPLBACKEND": "agg", "NO_COLOR": "1"}
    more = "" if IS_WHOLE else " ".join(words for pattern, words in FEWER.items() if re.search(pattern, command))
    done = subprocess.run(
        ["bash", "-c", f"{command} {more}"], cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    return "" if done.returncode == 0 else f"$ {command}\n{done.stderr or done.stdout}(exit {done.returncode})"


@pytest.mark.parametrize("page", [page for page in PAGES if any(not why_not(line) for line in commands(page))])
def test_every_command_of_a_page_works(page: str, tmp_path: Path) -> None:
    assert shutil.which("simbatch", path=str(BIN)), f"no simbatch in {BIN}"
    text = (ROOT / page).read_text(encoding="utf-8")
    for before, inside, content in OWN_FILE.findall(text):
        if before or inside:
            (tmp_path / (before or inside)).write_text(content, encoding="utf-8")
    wrong = []
    for command in commands(page):
        if why_not(command):
            continue
        for name in FILES:
            if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", command) and not (tmp_path / name).exists():
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                FILES[name](path)
        wrong += filter(None, [run(command, tmp_path)])
    assert not wrong, "\n".join(wrong)


def test_what_is_not_run_and_what_is_brought_is_named_by_a_page() -> None:
    shown = [command for page in PAGES for command in commands(page)]
    assert [pattern for pattern in (*NOT_RUN, *FEWER) if not any(re.search(pattern, line) for line in shown)] == []
    assert [name for name in FILES if not any(name in line and not why_not(line) for line in shown)] == []
