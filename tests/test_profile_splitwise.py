"""Whole batches as a profile."""

import csv

import pytest

from simbatch.profiler.importers.imported import import_profile
from simbatch.profiler.importers.source import Request
from simbatch.profiler.importers.splitwise import Batches
from simbatch.sim.errors import UserError

COLUMNS = (
    "model",
    "hardware",
    "prompt_size",
    "batch_size",
    "token_size",
    "prompt_time",
    "token_time",
    "tensor_parallel",
)


@pytest.fixture
def folder(tmp_path):
    """Prefills of 20 ms + 0.1 ms a token, decodes of 30 ms + 0.5 ms a sequence + 2 us a token of context."""
    rows = []
    for prompt, batch in [*((prompt, 1) for prompt in (128, 512, 2048, 8192)), *((512, 2**i) for i in range(7))]:
        tokens = prompt * batch
        times = {"prompt_time": 20 + 0.1 * tokens, "token_time": 30 + 0.5 * batch + 2e-3 * batch * (prompt + 64)}
        row = {"model": "llama2-70b", "hardware": "h100-80gb", "prompt_size": prompt, "batch_size": batch}
        rows += [row | times | {"token_size": 128, "tensor_parallel": degree} for degree in (2, 8) for _ in range(4)]
    wrong = {"prompt_time": 1.0, "token_time": 1.0}
    rows = [row | wrong if row["tensor_parallel"] == 2 and row["batch_size"] == 64 else row for row in rows]
    rows += [row | wrong | {"hardware": "h100-80gb-pcap"} for row in rows]
    with (tmp_path / "perf_model.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def test_prompt_and_token_times_come_back(folder):
    cost = Batches(folder / "perf_model.csv", "h100", 8).fit(0).step_time.cost_model()
    for batch, context in ((1, 600), (8, 8 * 600), (64, 64 * 600)):
        expected_ms = 30 + 0.5 * batch + 2e-3 * context
        assert cost.decode_ps(batch) + cost.decode_context_ps * context == pytest.approx(1e9 * expected_ms, rel=2e-3)
    for tokens in (128, 512, 8192, 32768):
        assert cost.mixed_ps(0, 0, tokens, tokens, tokens**2) == pytest.approx(1e9 * (20 + 0.1 * tokens), rel=2e-3)
    assert cost.mixed_ps(0, 0, 128, 5000, 128 * 9872) == cost.mixed_ps(0, 0, 128, 128, 128**2), (
        "no history was measured"
    )


def test_bogus_and_synthetic_rows_are_left_out(folder):
    batches = Batches(folder / "perf_model.csv", "h100", 2)
    assert batches.decode.num_decodes.max() == 32
    assert batches.decode_s.min() > 0.03
    assert Batches(folder / "perf_model.csv", "h100", 8).decode.num_decodes.max() == 64


def test_what_was_not_measured_stands_in_the_profile(folder):
    profile = import_profile(Request("splitwise", folder, "x.json", gpu="h100", tensor_parallel_size=8))
    assert profile.name == "h100-llama-2-70b-fp16-tp8"
    assert profile.error.mixed.num_steps == 0
    assert profile.error.decode.num_steps > 0
    assert profile.range.mixed.num_decodes == (0, 0), "steps with prefills and decodes are outside of the range"
    assert "mixed" not in profile.error.summary()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gpu": None}, r"--gpu: must be one of a100, h100"),
        ({"gpu": "l40s"}, r"--gpu: must be one of a100, h100"),
        ({"tensor_parallel_size": 4}, r"--tensor-parallel-size: .* has llama2-70b on h100-80gb with \[2, 8\]"),
        ({"model": "bloom"}, r"--model: means nothing with --from splitwise"),
        ({"kv_cache_dtype": "fp8"}, r"--kv-cache-dtype: was not measured here"),
    ],
)
def test_what_splitwise_did_not_measure_is_refused(folder, options, expected):
    with pytest.raises(UserError, match=expected):
        import_profile(Request("splitwise", folder, "x.json", **{"gpu": "h100", "tensor_parallel_size": 8, **options}))
