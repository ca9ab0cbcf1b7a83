"""Traffic by name, for who has no trace: lengths as published traces have them, each with its source.

Lengths are lognormal with a trace's mean, cv and longest; arrivals are Poisson at the rate that is asked for. What no
trace says (a system prompt, which documents are asked for) is an assumption, and said to be one. Of sessions it is the
sessions that begin so.

Scenarios by name: those that ship in the package, from a checkout and from a wheel alike.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import is_dangling, stat_of
from simbatch.sim.scenario.document import YamlDocument, parse_document
from simbatch.sim.scenario.reading import read_document

AZURE = "Azure LLM inference trace 2023, {} (github.com/Azure/AzurePublicDataset, CC-BY-4.0)"
MOONCAKE = "Mooncake's conversation trace of FAST'25 (github.com/kvcache-ai/Mooncake, Apache-2.0)"
SECONDS, FEWEST, MOST = 300, 200, 3000  # of traffic, and how many requests that may be
SLO_KEYS = ("ttft_ms", "tpot_ms", "e2el_ms")
LEAST_TOKENS = 16  # of a prompt or an output that is cut to a short context
LMSYS = "LMSYS-Chat-1M, table 1 (arXiv 2309.11998, 2023)"
TRACELAB = "TraceLab's Claude Code and Codex sessions, September 2025 to June 2026 (tracelab.cs.washington.edu)"
FEWEST_SESSIONS, COUNTED = 50, 1000  # sessions of a preset's traffic, and those by whose draws its turns are counted


@dataclass(frozen=True)
class Preset:
    """One kind of traffic; `prompt` and `output` are (mean, cv, longest) in tokens, `slo` in ms."""

    name: str
    words: str
    source: str
    prompt: tuple[float, float, int]
    output: tuple[float, float, int]
    slo: Mapping[str, float]
    prefix: Mapping[str, float] | None = None
    assumed: str = ""

    def workload(self, request_rate: float, room: int | None = None) -> dict[str, Any]:
        """The `workload` section at so many requests a second, for about five minutes.

        A model that takes `room` tokens at most gets shorter requests: the longest are halved until they fit.
        """
        prefix = dict(self.prefix) if self.prefix is not None else None
        longest = [self.prompt[2], self.output[2]]
        taken = int(prefix["prefix_len"]) if prefix is not None else 0
        if room is not None and prefix is not None and taken > room // 2:
            prefix, taken = None, 0
        while room is not None and sum(longest) + taken > room and min(longest) > LEAST_TOKENS:
            longest = [tokens // 2 for tokens in longest]
        lengths = {
            key: _lognormal(min(mean, limit), cv, limit)
            for key, (mean, cv, _), limit in zip(
                ("prompt_len", "output_len"), (self.prompt, self.output), longest, strict=True
            )
        }
        count = min(max(round(SECONDS * request_rate), FEWEST), MOST)
        data = {"num_prompts": count, "request_rate": request_rate, **lengths}
        return data if prefix is None else {**data, "prefix": prefix}


@dataclass(frozen=True)
class SessionPreset:
    """Users whose turns wait for answers; `sessions` is that section without its number and its arrival."""

    name: str
    words: str
    source: str
    sessions: Mapping[str, Any]
    slo: Mapping[str, float]
    assumed: str

    def workload(self, request_rate: float, room: int | None = None) -> dict[str, Any]:
        """The `workload` section at so many requests a second; sessions end where `room` tokens are full."""
        sessions = dict(self.sessions)
        if room is not None:
            system = min(int(sessions["system_prompt_tokens"]), room // 4)
            sessions |= {"system_prompt_tokens": system, "max_context": room}
        per_session = _requests_of(sessions)
        number = max(round(SECONDS * request_rate / per_session), FEWEST_SESSIONS)
        arrival = {"process": "poisson", "request_rate": float(f"{request_rate / per_session:.4g}")}
        return {"sessions": {"num_sessions": number, "arrival": arrival, **sessions}}


def _requests_of(sessions: Mapping[str, Any]) -> float:
    """How many requests a session has, by the draws of some."""
    from simbatch.sim.workload import Workload, open_workload

    counted = {"num_sessions": COUNTED, "concurrency": COUNTED, **sessions}
    source = open_workload(Workload.model_validate({"sessions": counted}), seed=0, folder=Path())
    return (source.num_requests or 0) / COUNTED


def _lognormal(mean: float, cv: float, longest: float) -> dict[str, Any]:
    return {"distribution": "lognormal", "mean": mean, "cv": cv, "max": longest}


PRESETS: dict[str, Preset | SessionPreset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="chat",
            words="people who chat",
            source=AZURE.format("conversation"),
            prompt=(1155, 0.96, 14050),
            output=(211, 0.77, 1000),
            slo={"ttft_ms": 1000, "tpot_ms": 50},
        ),
        Preset(
            name="code",
            words="completions of code: long prompts, short answers",
            source=AZURE.format("code"),
            prompt=(2048, 0.96, 7437),
            output=(28, 2.15, 1899),
            slo={"ttft_ms": 1000, "tpot_ms": 50},
        ),
        Preset(
            name="rag",
            words="questions about documents behind one system prompt, some documents asked for far more than others",
            source=AZURE.format("conversation") + ", outputs",
            prompt=(150, 0.8, 2048),
            output=(211, 0.77, 1000),
            slo={"ttft_ms": 2000, "tpot_ms": 50},
            prefix={"prefix_len": 2560, "common_len": 512, "num_prefixes": 500, "zipf": 1.0},
            assumed="a system prompt of 512 tokens, 500 documents of 2,048 of which the k-th is asked for 1/k as often",
        ),
        Preset(
            name="summarize",
            words="long texts to shorten: many thousand tokens in, some hundred out",
            source=MOONCAKE,
            prompt=(12035, 1.31, 126195),
            output=(343, 0.73, 2000),
            slo={"ttft_ms": 10000, "tpot_ms": 100},
        ),
        SessionPreset(
            name="chat_sessions",
            words="people who chat, turn by turn: 2.0 turns, 70 tokens asked and 215 answered in each",
            source=LMSYS,
            sessions={
                "turns": {"distribution": "geometric", "mean": 2.0, "max": 50},
                "new_tokens": _lognormal(70, 1.5, 4096),
                "output_len": _lognormal(215, 0.8, 2048),
                "system_prompt_tokens": 500,
                "think_time_s": _lognormal(60, 1.5, 600),
            },
            slo={"ttft_ms": 1000, "tpot_ms": 50},
            assumed="the spread of turns and lengths, one system prompt of 500 tokens, a minute of thought",
        ),
        SessionPreset(
            name="coding_agent",
            words="coding agents: 84 calls a session, 523 tokens answered in each, prompts of 154,000 on average",
            source=TRACELAB,
            sessions={
                "turns": {"distribution": "geometric", "mean": 84, "max": 1000},
                "new_tokens": _lognormal(2800, 2.0, 32768),
                "output_len": _lognormal(523, 1.5, 8192),
                "system_prompt_tokens": 15000,
                "think_time_s": _lognormal(60, 1.5, 600),
                "tool_time_s": _lognormal(5, 2.0, 300),
                "tool_share": 0.9,
            },
            slo={"ttft_ms": 5000, "tpot_ms": 50},
            assumed="spreads; 2,800 new tokens a call, from the mean prompt; one prompt of 15,000 for system and tools "
            "(about what Weka's traces of April 2026 show); 9 of 10 calls follow a tool of 5 s, others a person of a "
            "minute; a session ends where the context is full",
        ),
    )
}


def preset_of(name: str, place: str = "--preset") -> Preset | SessionPreset:
    """The preset of this name; UserError with all names."""
    if name in PRESETS:
        return PRESETS[name]
    near = get_close_matches(name, PRESETS, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? " if near else ""
    raise UserError(Problem(place, "no such traffic", name, f"{guess}there are {', '.join(PRESETS)}"))


def slo_of(limits: Iterable[str]) -> dict[str, float]:
    """`["ttft_ms=500,tpot_ms=40"]`, as `--slo` takes it; UserError for what is no limit in milliseconds."""
    found = {}
    for limit in (part for text in limits for part in text.split(",")):
        key, _, value = limit.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if key not in SLO_KEYS or not 0 < number < float("inf"):
            rule = f"must be one of {', '.join(SLO_KEYS)}, =, and milliseconds above 0"
            raise UserError(Problem("--slo", rule, limit, "write --slo ttft_ms=500 --slo tpot_ms=40"))
        found[key] = number
    return found


_ENDING = ".yaml"


def shipped_scenarios() -> list[str]:
    """The names, in alphabetical order."""
    return sorted(entry.name.removesuffix(_ENDING) for entry in _folder().iterdir() if entry.name.endswith(_ENDING))


def shipped_scenario_text(name: str) -> str:
    """The YAML of a shipped scenario; UserError where there is none of this name."""
    if name not in shipped_scenarios():
        raise _unknown(name, "no scenario of this name ships", [], "")
    return (_folder() / f"{name}{_ENDING}").read_text(encoding="utf-8")


def about(name: str) -> str:
    """What a shipped scenario shows: the first sentence of the comment at its top."""
    lines = [line.removeprefix("#").strip() for line in shipped_scenario_text(name).splitlines()]
    text = " ".join(line for line in lines[1 : lines.index("", 2)] if line)
    return re.split(r"(?<=[.?]) ", text)[0].rstrip(".")


def open_scenario(reference: str | Path) -> tuple[YamlDocument, Path]:
    """What a scenario says, and the folder at which relative paths in it start; a file of that path wins over a name.

    Relative paths in a shipped one start in the current folder. Raises UserError.
    """
    path = Path(reference)
    found = stat_of(path)
    if (found is None or stat.S_ISDIR(found.st_mode)) and _is_name(path):
        if str(path) in shipped_scenarios():
            return parse_document(shipped_scenario_text(str(path)), name=str(path)), Path()
        if found is None and not is_dangling(path):
            rule, mend = "neither a shipped scenario nor a file", ", or give a path to a .yaml file"
            raise _unknown(str(path), rule, [there.name for there in _files_beside(path)], mend)
    if found is None and path.suffix == _ENDING and path.stem in shipped_scenarios() and not _files_beside(path):
        mend = f"write `{path.stem}` for the one that ships, or check the path"
        raise UserError(Problem(str(path), "cannot be read: No such file", mend=mend))
    return read_document(path), path.parent


def _is_name(path: Path) -> bool:
    return len(path.parts) == 1 and not path.suffix


def _files_beside(path: Path) -> list[Path]:
    return [] if stat_of(path.parent) is None else sorted(path.parent.glob("*.y*ml"))


def _unknown(name: str, rule: str, others: list[str], otherwise: str) -> UserError:
    near = get_close_matches(name, [*shipped_scenarios(), *others], n=2, cutoff=0.6)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(Problem("scenario", rule, name, f"{guess}`simbatch scenarios list` shows what ships{otherwise}"))


def _folder() -> Traversable:
    return files("simbatch.scenarios")
