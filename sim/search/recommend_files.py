"""recommend.json, the file for vLLM's --config, and the scenario that the recommendation was checked with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simbatch.sim.files import write_json
from simbatch.sim.results.files import write_result
from simbatch.sim.search.recommend import Recommendation, Trial
from simbatch.sim.search.recommend_report import FIGURES, all_notes, verdict
from simbatch.sim.search.recommend_vllm import CONFIG_FILE, arguments, command, config_yaml

OWN_FILES = ("recommend.json", CONFIG_FILE, "scenario.yaml")


def save(found: Recommendation, folder: Path) -> list[Path]:
    """Write everything into `folder`; returns the files."""
    comment = f"{found.case.name} on {found.profile.name}, by simbatch recommend; for vllm serve --config {CONFIG_FILE}"
    writers = {
        "recommend.json": lambda path: write_json(path, content(found)),
        CONFIG_FILE: lambda path: path.write_text(config_yaml(arguments(found), comment), encoding="utf-8") and None,
        "scenario.yaml": lambda path: _write_scenario(path, found),
    }
    return write_result(folder, writers, OWN_FILES)


def content(found: Recommendation) -> dict[str, Any]:
    """The content of recommend.json."""
    given = arguments(found)
    return {
        "use_case": found.case.name,
        "profile": found.profile.name,
        "goal": found.goal,
        "slo": found.slo,
        "seeds": {"first": found.scenario.seed, "fresh": found.fresh_seeds},
        "load": {**vars(found.load), "peak": found.load.peak},
        "table": {"max_num_seqs": found.prior.max_num_seqs, "min": found.case.low, "max": found.case.high},
        "recommended": found.chosen._asdict(),
        "is_table_kept": found.is_prior_kept,
        "verdict": verdict(found),
        "evidence": [_trial(found, trial) for _, trial in sorted(found.trials.items())],
        "fresh_ratios": [
            {
                **choice._asdict(),
                "ratio": interval and {"estimate": interval.estimate, "low": interval.low, "high": interval.high},
            }
            for choice, interval in found.against.items()
        ],
        "num_runs": found.num_runs,
        "vllm": given,
        "vllm_serve": command(given),
        "notes": all_notes(found),
    }


def _trial(found: Recommendation, trial: Trial) -> dict[str, Any]:
    figures: dict[str, Any] = {key: trial.mean(key) for key in FIGURES}
    figures["slo_share"] = trial.mean("simbatch.slo_share.all") if found.slo else None
    figures["num_preemptions"] = trial.mean("simbatch.num_preemptions")
    return {**trial.choice._asdict(), "score": trial.score, **figures, "overloaded_runs": trial.at_load.num_overloaded}


def _write_scenario(path: Path, found: Recommendation) -> None:
    import yaml

    rate = {} if found.load.rate is None else {"workload.request_rate": found.load.rate}
    data = found.scenario.override({**found.chosen.settings(), **rate}).dump()
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
