"""What host and front end take, from the log of a server's steps and from what its clients saw: least squares.

The engine's thread: a launch is S to L; an update goes from when it could begin (the step has ended, the next launch
has returned) to the next schedule(), so that it has the loop's own time too; the device begins `lag` after S where it
was idle. The front end: requests of a burst get in one after the other, and the gaps between them are its work; what a
request that is alone takes beyond that, in and out, is delay that holds up nobody (`network_s`). Medians, and values
that are far off are left out: a shared machine stalls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Step = dict[str, Any]
Floats = NDArray[np.float64]
ROUNDS, FAR = 5, 4.0  # of leaving out, and how many times the median error is far off
LONGEST_S = 0.02  # a gap between two events that is longer is idleness, or a stall of the machine


def constants(alone: dict[str, Any], bursts: dict[str, Any]) -> dict[str, Any]:
    """The sections `host` and `front_end`, from a run of one request at a time and one of bursts."""
    steps = [_steps(run) for run in (alone, bursts)]
    both = [step for part in steps for step in part]
    host = {
        "launch": _launches(both),
        "update": dict(zip(("base_s", "per_seq_s"), _updates(steps), strict=True)),
        "admit": {"base_s": _median(line["t1"] - line["t"] for run in (alone, bursts) for line in _adds(run).values())},
        "lag_s": _median(after["d0"] - after["s0"] for part in steps for _, after in _idle(part)),
    }
    work_s = _median(_spacings(bursts))
    per_token_s, once_s = _line([row["num_prompt_tokens"] for row in alone["rows"]], _ways_in(alone))
    per_chunk_s, out_s = _line(*_ways_out(bursts))
    del out_s
    alone_out_s = _median(_ways_out(alone)[1])
    front_end = {
        "per_request_s": work_s,
        "per_prompt_token_s": per_token_s,
        "per_chunk_s": per_chunk_s,
        "network_s": once_s - work_s + alone_out_s - per_chunk_s,
    }
    return {"host": host, "front_end": {key: max(0.0, value) for key, value in front_end.items()}}


def _steps(run: dict[str, Any]) -> list[Step]:
    return [line for line in run["steps"] if "s0" in line]


def _adds(run: dict[str, Any]) -> dict[str, Step]:
    """The lines of requests taken in, by the client's name of them."""
    adds = [line for line in run["steps"] if "add" in line]
    return {own_name(line["add"]): line for line in adds}


def own_name(name: str) -> str:
    """A request's name as its client gave it."""
    return name.removeprefix("cmpl-").rsplit("-", 2)[0]


def _launches(steps: Sequence[Step]) -> dict[str, dict[str, float]]:
    """By kind; there are no graphs here, so two kinds are one."""
    decodes = [step for step in steps if not step["pre"]]
    prefills = [step for step in steps if step["pre"]]
    slope, base = _line([step["nd"] for step in decodes], [step["m1"] - step["s0"] for step in decodes])
    terms = np.array([[1.0, len(step["batch"]), sum(n for _, n in step["pre"])] for step in prefills])
    found = _least(terms, np.array([step["m1"] - step["s0"] for step in prefills]))
    other = dict(zip(("base_s", "per_seq_s", "per_token_s"), found, strict=True))
    return {"graph": {"base_s": base, "per_seq_s": slope}, "piecewise": other, "none": other}


def _updates(parts: Sequence[Sequence[Step]]) -> tuple[float, float]:
    """Base and per request: from when an update could begin to the next schedule()."""
    sizes, took = list[float](), list[float]()
    for steps in parts:
        for k in range(len(steps) - 2):
            step, newer, next_s = steps[k], steps[k + 1], steps[k + 2]["s0"]
            if newer["m1"] <= step["u0"] and next_s >= step["u1"]:  # as usual: two in flight, then an update
                began_s = max(step["d1"], newer["m1"])
                if next_s - began_s < LONGEST_S:
                    sizes.append(len(step["batch"]))
                    took.append(next_s - began_s)
    slope, base = _line(sizes, took)
    return base, slope


def _idle(steps: Sequence[Step]) -> Iterator[tuple[Step, Step]]:
    """Pairs of neighbours between which the device had nothing to do."""
    return ((before, after) for before, after in pairwise(steps) if after["d0"] > before["d1"] + 1e-5)


def _ways_in(run: dict[str, Any]) -> list[float]:
    """From being sent to the engine's queue, s."""
    adds = _adds(run)
    return [adds[row["name"]]["q"] - row["sent_s"] for row in run["rows"]]


def _spacings(run: dict[str, Any]) -> Iterator[float]:
    """Between the arrivals at the engine's queue of requests that were sent at once, s."""
    adds, sent = _adds(run), {row["name"]: row["sent_s"] for row in run["rows"]}
    arrivals = sorted((line["q"], sent[name]) for name, line in adds.items() if name in sent)
    for (one_s, sent_one), (other_s, sent_other) in pairwise(arrivals):
        if abs(sent_other - sent_one) < LONGEST_S and other_s - one_s < LONGEST_S:
            yield other_s - one_s


def _ways_out(run: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Requests of the step that gave a first token, and from the end of its update to the client's having it, s."""
    firsts, prompts = dict[str, Step](), {line["add"]: line["n"] for line in _adds(run).values()}
    for step in _steps(run):
        firsts |= {own_name(name): step for name, n, done in step["batch"] if done + n == prompts.get(name)}
    found = [(firsts[row["name"]], row["chunk_s"][0]) for row in run["rows"]]
    return [float(len(step["batch"])) for step, _ in found], [first_s - step["u1"] for step, first_s in found]


def _median(values: Any) -> float:
    return float(np.median(list(values)))


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and height at 0, neither below 0."""
    height, slope = _least(np.array([[1.0, value] for value in x]), np.array(y))
    return slope, height


def _least(terms: Floats, values: Floats) -> list[float]:
    """Coefficients from 0 on, by least squares; values that are far off are left out."""
    from scipy.optimize import nnls

    kept = np.full(len(values), True)
    for _ in range(ROUNDS):
        found, _ = nnls(terms[kept], values[kept])
        off = np.abs(values - terms @ found)
        kept = off <= FAR * np.median(off) + 1e-6
    return [float(value) for value in found]
