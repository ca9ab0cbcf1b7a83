"""What `simbatch recommend` writes, put through vLLM's own argument parser.

Every flag of the installed vLLM's own parser has an answer in the table that `simbatch init` reads.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from parity.serve_flags import differences, listed
from simbatch.sim.cost.by_name import load_profile, shipped_names
from simbatch.sim.scenario.flags import spellings
from simbatch.sim.tuning.recommend import BatchChoice, CaseLoad, Recommendation
from simbatch.sim.tuning.recommend_cases import USE_CASES, scenario_of
from simbatch.sim.tuning.vllm_flags import arguments, command, config_yaml, vllm_serve

CHOSEN = BatchChoice(24, 4096)


@pytest.fixture(scope="module")
def parse():
    """`vllm serve ...` as vLLM's command line builds it."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    return lambda words: parser.parse_args(words)


def recommendation(use_case, name, **changes):
    case, profile = USE_CASES[use_case], load_profile(name, folder=Path())
    profile = profile.model_copy(update=changes)
    scenario = scenario_of(case, profile, name, case.slo, 0)
    return Recommendation(case, scenario, profile, case.goal, CHOSEN, CHOSEN, CHOSEN, CaseLoad(1.0), {})


def check(parsed, given):
    assert (parsed.model_tag or parsed.model) == given["model"]
    for name, value in given.items():
        if name not in ("model", "quantization", "dtype"):
            assert getattr(parsed, name.replace("-", "_")) == value, name
    assert parsed.quantization == given.get("quantization")
    assert parsed.dtype == given.get("dtype", "auto")


@pytest.mark.parametrize("name", shipped_names())
def test_command_and_file_of_every_profile(name, parse, tmp_path):
    given = arguments(recommendation("mixed", name))
    check(parse(shlex.split(command(given))[1:]), given)
    file = tmp_path / "vllm.yaml"
    file.write_text(config_yaml(given, "a comment"))
    check(parse(["serve", "--config", str(file)]), given)


@pytest.mark.parametrize("name", shipped_names())
def test_what_tune_prints_is_taken_too(name, parse):
    profile, scenario = load_profile(name, folder=Path()), recommendation("mixed", name).scenario
    words = shlex.split(vllm_serve(scenario, {"engine.max_num_seqs": 24, "engine.enable_prefix_caching": False}))
    parsed = parse(words[1:])
    assert (parsed.model_tag, parsed.max_num_seqs, parsed.enable_prefix_caching) == (profile.model, 24, False)
    assert parsed.tensor_parallel_size == profile.tensor_parallel_size
    assert parsed.max_model_len == scenario.engine.max_model_len
    assert parsed.kv_cache_dtype == (profile.kv_cache_dtype if profile.kv_cache_dtype.startswith("fp8") else "auto")


@pytest.mark.parametrize("use_case", USE_CASES)
@pytest.mark.parametrize("quantisation", ["bf16", "fp32", "awq", "gptq", "fp8", "int8", "int4", "fp8_block"])
def test_every_use_case_and_quantisation(use_case, quantisation, parse):
    given = arguments(recommendation(use_case, "rtx4090-llama-3.1-8b-bf16", quantisation=quantisation))
    check(parse(shlex.split(command(given))[1:]), given)


def test_what_is_off_is_said_as_vllm_says_it(parse, tmp_path):
    found = recommendation("mixed", "rtx4090-llama-3.1-8b-bf16")
    found = replace(found, scenario=found.scenario.override({"engine.enable_prefix_caching": False}))
    given = arguments(found)
    file = tmp_path / "vllm.yaml"
    file.write_text(config_yaml(given, "a comment"))
    assert "--no-enable-prefix-caching" in command(given)
    assert parse(shlex.split(command(given))[1:]).enable_prefix_caching is False
    assert parse(["serve", "--config", str(file)]).enable_prefix_caching is False


STATUSES = {"used", "no_effect", "not_simulated"}


def test_every_flag_of_the_parser_has_an_answer():
    actions = [action for action in listed(sys.executable)["actions"] if action["options"]]
    assert len(actions) > 300
    assert [*differences(actions)] == []
    rows = [spellings()[option][0] for action in actions for option in action["options"] if option != "-h"]
    assert {row.status for row in rows} == STATUSES
    assert all(row.key or row.reason for row in rows)
