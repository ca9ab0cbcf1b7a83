"""`profiles import --from aiconfigurator-core`: the package's tables, offline, beside the importer of its files."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from simbatch.profiler.fit.design import StepLimits, sample_steps
from simbatch.profiler.importers.imported import import_profile
from simbatch.profiler.importers.source import ImportRequest
from simbatch.profiler.records.steps import predict_s
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.errors import UserError
from tests.model_configs import LLAMA_8B

LIMITS = StepLimits((1, 256), (1, 128), (16, 8192), (16, 2048), (0, 4096), 2048, 200_000)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the package called a hub")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def request(**more):
    given = {"model": "meta-llama/Meta-Llama-3.1-8B", "gpu": "H100", **more}
    return ImportRequest("aiconfigurator-core", None, "p.json", **given)


@pytest.fixture(scope="module")
def h100():
    return import_profile(request())


def test_it_agrees_with_the_tables_of_the_same_people_read_from_files(h100):
    shipped = load_profile("h100-llama-3.1-8b-bf16", folder=Path())
    for regime, mean, bias in (("decode", 0.08, 0.06), ("prefill", 0.06, 0.05), ("mixed", 0.08, 0.05)):
        steps = sample_steps(regime, 300, LIMITS, 5)
        ours, theirs = predict_s(h100.cost_model(), steps), predict_s(shipped.cost_model(), steps)
        assert np.abs(ours / theirs - 1).mean() < mean, regime
        assert abs(ours.sum() / theirs.sum() - 1) < bias, regime


def test_it_says_what_it_is_made_of(h100):
    assert h100.name == "h100-meta-llama-3.1-8b-bf16"
    assert h100.command == (
        "simbatch profiles import --from aiconfigurator-core --model meta-llama/Meta-Llama-3.1-8B --gpu H100 -o p.json"
    )
    assert (h100.licence, h100.vllm_version) == ("Apache-2.0", "0.24.0")
    assert h100.error is not None
    assert h100.error.against == "tables"
    assert h100.host is not None
    assert h100.host.assumed


def test_temperature_0_is_quicker_and_a_folder_is_read_as_a_name_is(h100, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    own = import_profile(request(model=str(tmp_path), greedy=True))
    assert own.cost_model().decode_ps(64) < h100.cost_model().decode_ps(64) - 10**9


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"gpu": "l4"}, "no tables of vLLM's for it; it has those of a100, b200"),
        ({"model": "meta-llama/Llama-9-8B"}, "nothing is downloaded"),
        ({"quantisation": "awq"}, "measured were bf16"),
        ({"gpu": "a100", "quantisation": "fp8"}, "aiconfigurator-core has no times of it on 1 x a100"),
        ({"model": None}, "needs --model and --gpu"),
    ],
)
def test_what_it_has_not_is_refused(more, said):
    with pytest.raises(UserError, match=said):
        import_profile(request(**more))
