"""How many requests a KV cache holds: against brute force, and against the simulated engine."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from simbatch import Scenario, simulate
from simbatch.profiler.model.memory_batch import RequestLengths, fit, held_blocks, lengths_of, runnable, whole_blocks
from simbatch.sim.errors import UserError
from simbatch.sim.workload.lengths import Lognormal
from simbatch.sim.workload.synthetic import length_draw

PROMPT = {"distribution": "lognormal", "mean": 800, "cv": 1.0, "max": 4096}
OUTPUT = {"distribution": "lognormal", "mean": 200, "cv": 0.8, "max": 2048}


def drawn(number=50_000):
    pair = []
    for seed, length in enumerate((PROMPT, OUTPUT)):
        draw = length_draw(Lognormal.model_validate(length), folder=None, of="num_prompt_tokens")
        pair.append(draw(np.random.default_rng(seed), number))
    return RequestLengths(*pair, "drawn")


def simulated(seats, blocks, prompt=PROMPT, output=OUTPUT, num_prompts=6000, **how):
    """So many users who ask again at once: all seats are taken all the time."""
    data = {
        "profile": {"num_gpu_blocks": blocks, "step_time": {"base_s": 0.01}},
        "engine": {
            "max_num_seqs": seats,
            "max_num_batched_tokens": 8192,
            "enable_prefix_caching": False,
            "max_model_len": 8192 if blocks > 512 else 1024,
        },
        "workload": {
            "num_prompts": num_prompts,
            "arrival": {"process": "closed_loop", "max_concurrency": seats},
            "prompt_len": prompt,
            "output_len": output,
        },
    }
    return simulate(Scenario.from_dict(data), **how)


def test_blocks_of_one_request_step_by_step():
    one = RequestLengths(np.array([30]), np.array([5]), "")
    # 30, 31, 32, 33, 34 tokens in five steps
    assert held_blocks(one, whole_blocks(16)).tolist() == [0, 0, 3 / 5, 2 / 5]
    # a request of 100 steps is met twenty times as often as one of 5
    two = RequestLengths(np.array([16, 1600]), np.array([1, 99]), "")
    assert held_blocks(two, whole_blocks(16))[1] == 1 / 100


def test_the_convolution_is_that_of_the_definition():
    lengths = RequestLengths(np.array([3, 40, 7]), np.array([9, 20, 50]), "")
    held = held_blocks(lengths, whole_blocks(16))
    for usable in (3, 10, 25):
        found, sums = fit(lengths, usable, whole_blocks(16), risk=0.1), np.ones(1)
        shares = []
        for _ in range(30):
            sums = np.convolve(sums, held)
            shares.append(1 - sums[: usable + 1].sum())
        assert found.at_risk == sum(share <= 0.1 + 1e-12 for share in shares)
        assert found.risk == pytest.approx(shares[found.at_risk - 1] if found.at_risk else 0, abs=1e-9)
        assert found.risk_above == pytest.approx(shares[found.at_risk], abs=1e-9)


def test_fixed_lengths_fit_to_the_block():
    """One seat more than fits, and the engine preempts; the last output token takes no room."""
    lengths = lengths_of(100, 0, 61, 0)
    assert lengths.is_fixed
    found = fit(lengths, 200, whole_blocks(16))
    assert (found.longest_blocks, found.worst) == (10, 20)  # 100 + 61 - 1 tokens
    prompt, output = {"distribution": "fixed", "mean": 100}, {"distribution": "fixed", "mean": 61}
    fits, too_many = (simulated(seats, 201, prompt, output, 200) for seats in (20, 21))
    assert fits.summary["simbatch"]["num_preemptions"] == 0
    assert fits.summary["simbatch"]["kv_cache"]["peak_use"] == 1
    assert too_many.summary["simbatch"]["num_preemptions"] > 0


def test_the_risk_is_what_the_engine_meets(tmp_path):
    """With blocks in plenty, memory of the stated size would have been short in about the stated share of steps."""
    usable = 2587
    found = fit(drawn(), usable, whole_blocks(16))
    shares = []
    for seats in (found.at_risk, found.average):
        simulated(seats, 20_000, steps=True, num_prompts=5000).save(tmp_path)
        free = pq.read_table(tmp_path / "steps.parquet", columns=["free_blocks"]).column(0).to_numpy()
        used = (19_999 - free)[2000:-5000]  # from full seats to full seats
        shares.append((used > usable).mean())
    assert shares[0] == pytest.approx(found.risk, abs=0.01)
    assert shares[1] == pytest.approx(0.5, abs=0.2)


def test_preemptions_are_rare_at_it_and_common_above():
    found = fit(drawn(), 2587, whole_blocks(16))
    rare, average, above = (
        simulated(seats, 2588).summary["simbatch"]["num_preemptions"] / 6000
        for seats in (found.at_risk, found.average, 2 * found.at_risk)
    )
    assert rare < 0.01
    assert average > 0.05
    assert above > 0.1
    assert found.worst < found.at_risk < found.average


def test_what_vllm_rejects_and_cuts_is_left_out_and_said():
    lengths = RequestLengths(np.array([100, 900, 1000, 5000]), np.array([10, 200, 10, 10]), "four")
    kept, notes = runnable(lengths, 1000, "four")
    assert kept.num_prompt_tokens.tolist() == [100, 900]
    assert kept.num_output_tokens.tolist() == [10, 100]
    assert [note[:9] for note in notes] == ["2 of 4 pr", "1 of 4 ou"]
    with pytest.raises(UserError, match="rejects it"):
        runnable(lengths, 50, "four")
