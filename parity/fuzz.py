"""Differential fuzz: fresh random cases through vLLM's real scheduler and through ours, decision by decision.

`python -m parity.fuzz --vllm-python PYTHON [--cases 200] [--timing 100] [--sessions 60] [--seed N]`: PYTHON is the
interpreter of an environment with vLLM (its CPU build will do). Half of the cases are short of memory; those of
`--timing` drive vLLM's own engine loop on a virtual clock, with times of host and device, half of them asynchronous; in
those of `--sessions` a client sends each turn when others have ended, half of them with times. Cases that differ are
kept with vLLM's recording in `parity/failures`, where `make parity CASES=parity/failures` finds them.

Sessions are sent by a client as `vllm_oracle.py` says. The real scheduler gets token ids: a prompt is the conversation
so far with the answers as they were sampled. The engine gets lengths and who goes on with whom, as from a file
(`case.py`). Where both have the same prefix hits in every step, what it makes of lengths is what tokens say.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parity.check import first_difference, load

Row = dict[str, Any]
STEP_TIMES_NS = (
    {"base": 6_000_000, "per_prefill_token": 45_000, "per_decode_seq": 90_000, "per_context_token": 35},
    {"base": 10_000_000, "per_prefill_token": 0, "per_decode_seq": 0, "per_context_token": 0},  # many ties
)


def random_case(name: str, seed: int) -> dict[str, Any]:
    """A case in the recordings' form; every even seed is short of blocks."""
    rng = random.Random(seed)
    block_size = rng.choice([16, 16, 16, 32, 64, 128])
    max_model_len = rng.choice([256, 512, 768, 1024])
    per_request = -(-max_model_len // block_size)
    slack = [0, 1, per_request // 2, per_request] if seed % 2 == 0 else [per_request * 4, per_request * 12]
    max_num_seqs = rng.choice([1, 3, 5, 8, 13, 24, 40])
    budget = max(max_num_seqs, rng.choice([37, 48, 64, 100, 256, 512, 700, 1024]))
    config: dict[str, Any] = {
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": budget,
        "max_model_len": max_model_len,
        "block_size": block_size,
        "num_gpu_blocks": 1 + per_request + rng.choice(slack),
        "enable_prefix_caching": rng.random() < 0.6,
        "policy": rng.choice(["fcfs", "fcfs", "priority"]),
        "watermark": rng.choice([0.0, 0.0, 0.03, 0.15]),
        "scheduler_reserve_full_isl": rng.random() < 0.75,
        "long_prefill_token_threshold": rng.choice([0, 0, 0, 11, 20, 64]),
        "async_scheduling": rng.random() < 0.5,
    }
    if config["long_prefill_token_threshold"] and rng.random() < 0.4:
        config["long_prefill_token_threshold_adaptive"] = True
    if budget >= max_model_len and rng.random() < 0.3:
        config["enable_chunked_prefill"] = False
    if max_num_seqs > 1 and rng.random() < 0.2:
        config["max_num_active_seqs"] = rng.randint(1, max_num_seqs)
    interval = random.Random(f"interval {seed}")
    if interval.random() < 0.2:
        config["prefill_schedule_interval"] = interval.choice([2, 3, 5, 9])
    requests = (
        random_chats(rng, max_model_len) if rng.random() < 0.2 else random_requests(rng, max_model_len, block_size)
    )
    return {
        "name": name,
        "seed": seed,
        "config": config,
        "step_time_ns": rng.choice(STEP_TIMES_NS),
        "requests": requests,
        "max_steps": 20_000,  # real vLLM can rotate for ever
    }


def timing_case(name: str, seed: int) -> dict[str, Any]:
    """A random case with a host, whose times are of every order of magnitude beside the device's."""
    rng, case = random.Random(f"timing {seed}"), random_case(name, seed)
    case["config"]["async_scheduling"] = seed // 2 % 2 == 0

    def up_to(most_ns: int) -> int:
        return rng.choice([0, rng.randrange(most_ns // 100), rng.randrange(most_ns), rng.randrange(most_ns)])

    case["timing"] = {
        "admit": {"base": up_to(3_000_000), "per_prompt_token": up_to(3_000)},
        "host": {
            "decode": up_to(12_000_000),
            "per_seq": up_to(300_000),
            "small": up_to(15_000_000),
            "large": up_to(30_000_000),
            "small_tokens": rng.choice([0, 16, 64, 512]),
            "per_prefill": up_to(1_000_000),
            "per_token": up_to(20_000),
        },
        "lag": up_to(5_000_000),
        "tail": up_to(5_000_000),
        "update": {"base": up_to(2_000_000), "per_seq": up_to(50_000)},
    }
    return case


def random_requests(rng: random.Random, max_model_len: int, block_size: int) -> list[dict[str, Any]]:
    """Independent requests, some with shared beginnings, some of whole blocks, some too long."""
    now, rate_per_s, requests = 0, rng.choice([0, 2, 20, 200]), list[dict[str, Any]]()
    ties = rng.random() < 0.3
    for i in range(rng.choice([6, 30, 70])):
        if rate_per_s and rng.random() < 0.85:
            now += int(rng.expovariate(rate_per_s) * 1e9)
        prompt_len = rng.randint(1, max_model_len // 2)
        if rng.random() < 0.1:
            prompt_len = rng.randint(max_model_len // 2, max_model_len + 1)
        elif rng.random() < 0.2:
            prompt_len = block_size * rng.randint(1, max(1, prompt_len // block_size))
        request = {"id": f"r{i}", "arrival_ns": now // 10**7 * 10**7 if ties else now, "prompt_len": prompt_len}
        request |= {"max_tokens": rng.choice([1, 2, rng.randint(1, 60), rng.randint(1, max_model_len // 2)])}
        request |= {"priority": rng.randrange(4)}
        if rng.random() < 0.6:
            request["prefix"] = [f"g{rng.randrange(6)}", rng.randint(1, prompt_len)]
        requests.append(request)
    return requests


def random_chats(rng: random.Random, max_model_len: int) -> list[dict[str, Any]]:
    """Turns that replay the conversation so far, answers included, behind a shared system prompt."""
    requests = []
    for user in range(rng.randint(2, 12)):
        now = rng.randrange(10**9)
        parts: list[list[Any]] = [[f"sys{rng.randrange(3)}", 0, rng.choice([16, 48, 70])]]
        for turn in range(rng.randint(1, 4)):
            name, length = f"u{user}t{turn}", sum(part[2] for part in parts)
            question, answer = rng.randint(1, 80), rng.randint(1, 60)
            if length + question + answer >= max_model_len:
                break
            parts = [*parts, [f"r:{name}", length, question]]
            requests.append(
                {
                    "id": name,
                    "arrival_ns": now,
                    "prompt_len": length + question,
                    "max_tokens": answer,
                    "segments": parts,
                }
            )
            parts = [*parts[:-1], [f"r:{name}", length, question + answer]]
            now += int(rng.expovariate(1) * 1e9)
    return sorted(requests, key=lambda request: request["arrival_ns"])


def session_case(name: str, seed: int) -> dict[str, Any]:
    """A random case in which sessions come instead of requests; every even seed is short of blocks."""
    return _with_sessions(random_case(name, seed), seed)


def timed_session_case(name: str, seed: int) -> dict[str, Any]:
    """A random case of sessions with a host, whose times are of every order of magnitude beside the device's."""
    return _with_sessions(timing_case(name, seed), seed)


def _with_sessions(case: dict[str, Any], seed: int) -> dict[str, Any]:
    rng = random.Random(f"sessions {seed}")
    case["config"]["enable_prefix_caching"] = rng.random() < 0.9
    systems: Row = {"num_tokens": rng.choice([0, 16, 48, 70]), "of": {}}
    requests: list[Row] = []
    for number in range(rng.choice([2, 6, 15, 30])):
        systems["of"][f"s{number}"] = kind = rng.randrange(3)
        system = [[f"sys{kind}", 0, systems["num_tokens"]]] if systems["num_tokens"] else []
        requests += _session(rng, f"s{number}", system, case["config"]["max_model_len"])
    if rng.random() < 0.3:
        case["users"] = rng.choice([1, 2, 4])
    if rng.random() < 0.3:
        rng.shuffle(requests)
    return case | {"requests": requests, "system_prompts": systems}


def _session(rng: random.Random, session: str, system: list[list[Any]], max_model_len: int) -> list[Row]:
    """Turns of one session: most go on with the one before, some fork, some join what has forked."""
    begins_ns, turns = rng.choice([0, rng.randrange(10**9)]), list[Row]()
    for i in range(rng.choice([1, 3, 6, 9])):
        row: Row = {"id": f"{session}t{i}", "session": session, "priority": rng.randrange(3)}
        begin: list[list[Any]] = system
        num_new = rng.randint(1, 40) if rng.random() < 0.9 else rng.randint(1, max_model_len)  # some are too long
        if i == 0:
            row["arrival_ns"] = begins_ns
        else:
            others = turns[-3:] if rng.random() < 0.3 else turns[-1:]
            after = rng.sample(others, rng.randint(1, len(others)))
            row |= {"after": [other["id"] for other in after], "parent": after[0]["id"]}
            row["delay_ns"] = rng.choice([0, 0, rng.randrange(10**7), rng.randrange(10**9)])
            if rng.random() < 0.1:
                row["arrival_ns"] = begins_ns + rng.randrange(2 * 10**9)
            begin, num_new = _gone_on(rng, after[0], system, num_new)
        before = sum(length for _, _, length in begin)
        row |= {
            "prompt_len": before + num_new,
            "max_tokens": rng.choice([1, 2, *[rng.randint(1, most) for most in (60, 60, max_model_len // 3)]]),
        }
        row["segments"] = [*begin, [f"r:{row['id']}", before, num_new]]
        turns.append(row)
    return turns


def _gone_on(rng: random.Random, parent: Row, system: list[list[Any]], num_new: int) -> tuple[list[list[Any]], int]:
    """What a prompt begins with, and how many tokens follow: the conversation, that without its last answer, nothing.

    An engine tells which by the length, so the second is shorter than the first, and the third than the second.
    """
    *begin, (stream, start, length) = parent["segments"]
    how, answer, prompt = rng.random(), parent["max_tokens"], parent["prompt_len"]
    if how < 0.1 and prompt > 1:
        total = rng.randint(1, prompt - 1)
        begin = [[name, first, min(size, total)] for name, first, size in system]
        return begin, total - sum(size for _, _, size in begin)
    if how < 0.25:
        return parent["segments"], rng.randint(0, answer - 1)
    return [*begin, [stream, start, length + answer]], num_new


def fresh_cases(num: int, num_timed: int, num_sessions: int, seed: int) -> Iterator[Row]:
    """Random cases of each kind, numbered from `seed` on; half of those with sessions have times."""
    for kind, make, count in (
        ("fresh", random_case, num),
        ("timed", timing_case, num_timed),
        ("fresh-sessions", session_case, num_sessions - num_sessions // 2),
        ("timed-sessions", timed_session_case, num_sessions // 2),
    ):
        for number in range(seed, seed + count):
            yield make(f"{kind}-{number}", number)


HERE = Path(__file__).parent
PROBE = HERE / "probe.py"
START_LIMIT_S, CASE_LIMIT_S = 120, 5  # a case takes 0.2 s, and 3 s where requests rotate until they are cut


def record(vllm_python: str, folder: Path, num_cases: int) -> None:
    """Let the real scheduler decide every case of the folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    limit_s = START_LIMIT_S + CASE_LIMIT_S * num_cases
    command = [vllm_python, str(PROBE), str(folder)]
    try:
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=limit_s)
        how, said = f"ended with {done.returncode}", done.stderr
    except subprocess.TimeoutExpired:
        how, said = f"did not end within {limit_s} s", ""
    missing = [path.stem for path in sorted(folder.glob("*.json")) if not path.with_suffix(".jsonl.gz").is_file()]
    if missing:
        sys.exit(f"vLLM's scheduler, driven by {vllm_python}, {how} at case {missing[0]}:\n{said[-3000:]}")


def main() -> int:
    """Make cases, record, compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=os.environ.get("VLLM_PYTHON", ".venv-vllm/bin/python"))
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--timing", type=int, default=100, help="cases with times of host and device beside them")
    parser.add_argument("--sessions", type=int, default=60, help="cases in which turns wait for the ends of others")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="printed, so that a failure can be repeated")
    options = parser.parse_args()
    kinds = f"{options.cases} cases of decisions, {options.timing} of times and {options.sessions} of sessions"
    print(f"{kinds} from seed {options.seed}, half of them short of memory", flush=True)
    failures, num_steps, num_preemptions = HERE / "failures", 0, 0
    num_same = 0
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for case in fresh_cases(options.cases, options.timing, options.sessions, options.seed):
            paths.append(Path(folder) / f"{case['name']}.json")
            paths[-1].write_text(json.dumps(case))
        record(options.vllm_python, Path(folder), len(paths))
        for path in paths:
            recording = path.with_suffix(".jsonl.gz")
            lines = load(recording)
            case = json.loads(path.read_text()) | {"vllm_version": lines[0]["vllm"]}
            difference = first_difference(case, lines)
            num_same += difference is None
            num_steps += sum("i" in line for line in lines)
            num_preemptions += sum(len(line.get("pre", ())) for line in lines)
            if difference is not None:
                print(f"{path.stem}: the first step that differs\n{difference}")
                failures.mkdir(exist_ok=True)
                (failures / path.name).write_text(json.dumps(case))
                shutil.copy(recording, failures)
    print(f"{num_same} of {len(paths)} identical ({num_steps} steps, {num_preemptions} preemptions)")
    return 0 if num_same == len(paths) else 1


if __name__ == "__main__":
    sys.exit(main())
