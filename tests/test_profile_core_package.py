"""`profiles import --from aiconfigurator-core`: the package's tables, offline, beside what others measured."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from simbatch.profiler.fit.two_regime import StepLimits, sample_steps
from simbatch.profiler.importers import import_profile
from simbatch.profiler.importers.source import ImportRequest
from simbatch.profiler.records import predict_s
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.errors import UserError
from tests.made_samples import LLAMA_8B
from tests.test_profile_import import LINK

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


def test_it_agrees_with_the_same_tables_as_they_were_read_from_files(h100):
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


def test_a_link_takes_the_place_of_the_tables_all_reduces():
    """Two RTX PRO 6000 on PCIe: kernels added up, against ops that were measured inside vLLM; both over one link."""
    over_link = import_profile(request(gpu="rtxpro6000", tensor_parallel_size=2, greedy=True, link=LINK))
    measured = load_profile("rtxpro6000-llama-3.1-8b-bf16-tp2", folder=Path())
    assert over_link.link == measured.link == LINK
    assert "--link-us 40 --link-gb-per-s 16 --greedy -o p.json" in over_link.command
    assert any("a PCIe link of 40 us and 16 GB/s" in note for note in over_link.notes)
    assert over_link.host.launch.graph.base_s == pytest.approx(3.0e-3)
    for regime, most in (("decode", 0.08), ("prefill", 0.08), ("mixed", 0.13)):
        steps = sample_steps(regime, 300, LIMITS, 5)
        ours, theirs = predict_s(over_link.cost_model(), steps), predict_s(measured.cost_model(), steps)
        assert np.abs(ours / theirs - 1).mean() < most, regime


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
