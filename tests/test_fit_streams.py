"""`simbatch fit` on results of a server: what was planted is given back, and bad files are refused in a sentence.

How sure such a fit is: few episodes claim little.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.planted import Planted, planted, streams_of
from benchmarks.planted import stream_differences as differences
from benchmarks.planted import streams_back as given_back
from benchmarks.stream_fit import SHARED, chosen, errors, write_runs
from simbatch import Scenario, simulate
from simbatch.profiler.fit.facts import of_name
from simbatch.profiler.fit.streams import fit_streams, num_parts
from simbatch.profiler.fit.streams.episodes import Decode, FittedEpisodes
from simbatch.profiler.fit.streams.fit import Parts, fit_steps
from simbatch.profiler.fit.streams.runs import MAX_BYTES, read_results
from simbatch.profiler.fit.streams.steps import Lone, Price, StepColumns, cells_of, columns_of, fit_decodes, price_of
from simbatch.profiler.fit.streams.way_in import WayIn
from simbatch.profiler.fit.streams.windows import scatter_of
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.provenance import HARDLY_TOLD
from simbatch.sim.errors import UserError
from simbatch.sim.streams import Streams, rebuild_steps
from simbatch.sim.streams.steps import batches_of, infer_budget, judge
from tests import run_command, traffic
from tests.bench_files import vllm_of_streams

STREAMS = SHARED / "streams"
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def contents() -> list[dict[str, Any]]:
    given = planted(0)
    return [vllm_of_streams(streams_of(given, load, 0, number=150)) for load in given.loads]


@pytest.fixture
def files(contents: list[dict[str, Any]], tmp_path: Path) -> list[Path]:
    return [written(tmp_path / f"load{i}.json", content) for i, content in enumerate(contents)]


def written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("seed", [4, 9, 42])
def test_what_was_planted_is_given_back(seed: int) -> None:
    """Device times within 3 %, launches within 10 %; what hides is not claimed (4: prefills; 42: graphs)."""
    given, found = given_back(seed, 200)
    shares = dict(differences(given, found))
    assert all(abs(share) <= (0.1 if "launch" in name else 0.03) for name, share in shares.items()), shares
    assert ("prefill on the device" in found.profile.streams.taken) == (seed == 4)  # type: ignore[union-attr]


def test_a_launchs_slope_is_told_by_runs_that_are_apart() -> None:
    """By loops of 6 and 60; of 36 and 44 it might be their moods, and is in proportion to the nearest profile's."""
    given = planted(4)
    for key, slope_s in (("none", 1e-3), ("piecewise", 0.5e-3)):
        given.profile["host"]["launch"][key]["per_seq_s"] = slope_s
    shape = of_name(None)._replace(per_seq=0.02)
    apart, near = (fit_steps(columns_at(given, loads), shape).mixed for loads in ((6, 60), (36, 44)))
    assert apart.sure["per_seq_s"] < HARDLY_TOLD < near.sure["per_seq_s"]
    assert apart.host["per_seq_s"] == pytest.approx(1e-3, rel=0.25)
    assert near.host["per_seq_s"] == pytest.approx(0.02 * near.host["none_s"], rel=0.05)


def columns_at(given: Planted, loads: tuple[int, ...]) -> list[StepColumns]:
    """What a fit sees of its loops."""
    steps = [rebuild_steps(streams_of(given, load, 0, number=200)) for load in loads]
    return [columns_of(each, batches_of(each, given.settings["max_num_batched_tokens"])) for each in steps]


@pytest.mark.parametrize(
    ("model", "seen", "jump"),
    [
        ("gpt-oss-120b", {1: 4, 176: 12, 1025: 62, 8192: 66}, {1024: 12.5, 1025: 62}),
        ("org/dense-8B", {1: 3, 11: 3.5, 1033: 18, 8192: 54}, {512: 6, 513: 18}),
        ("org/dense-70B", {1: 11, 1100: 50, 8192: 336}, {}),
    ],
)
def test_a_launchs_floor_begins_behind_the_largest_graph(model: str, seen: dict[int, float], jump: dict[int, float]):
    decode = Decode(np.array([1]), np.array([0.004]), 0.0)
    knots, time_s = np.array([*seen]), np.array([*seen.values()]) / 1000
    mixed = FittedEpisodes(0.0, True, (2,), knots, time_s, 0.0, {}, {}, np.zeros((0, 0)))
    parts = Parts(decode, mixed, WayIn(0, 0, 0, 0, 0, 0), 0.0, of_name(model).priors(0.004))
    told = parts.step_time()["mixed"]["tokens"]
    found = dict(zip(told["count"], told["time_s"], strict=True))
    assert [*found] == sorted({*seen, *jump})
    assert {count: 1000 * found[count] for count in jump} == pytest.approx(jump, rel=0.02)


def decodes_alone(time_s: Array, num_decodes: Array, context: Array) -> StepColumns:
    """Steps without prefills."""
    lone = Lone(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0))
    return StepColumns(time_s, num_decodes, context, *(np.zeros((4, len(time_s)))), lone)


def test_rare_numbers_of_decodes_do_not_bend_what_the_run_took() -> None:
    """300 steps of ten at 10 ms, and 30 of nine that took half as long again: 12 ms, if they counted alike."""
    decodes, gaps_s = (np.repeat(values, (300, 30)) for values in ((10.0, 9.0), (0.010, 0.015)))
    run = decodes_alone(np.cumsum(gaps_s), decodes, 100 * decodes)
    decode = Decode(*fit_decodes([run], cells_of([run]), Price(1e-9, 1e-10, is_told=True)))
    assert decode.step_s(decodes, 100 * decodes).mean() == pytest.approx(gaps_s.mean(), rel=0.03)


def test_a_context_price_is_what_batches_agree_on() -> None:
    """Three times what is usual: where the slopes of three batches agree, and held near the usual where they do not."""

    def batch(n: int, price_s: float) -> StepColumns:
        context = n * (500.0 + np.arange(200))
        return decodes_alone(np.cumsum(0.01 + price_s * context), np.full(200, n), context)

    usual_s, real_s = 1e-8, 3e-8
    agree = price_of([batch(n, real_s) for n in (4, 8, 32)], usual_s)
    apart = price_of([batch(4, 5 * real_s), batch(8, -real_s), batch(32, real_s)], usual_s)
    assert agree.price_s == pytest.approx(real_s, rel=0.01)
    assert agree.is_told
    assert apart.price_s < 0.7 * real_s
    assert not apart.is_told


def test_the_command_writes_a_profile_that_runs(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mine.json"
    done = run_command(capsys, "fit", *files, "-o", target)
    assert done.code == 0
    for text in ("the others alone", "not told by these streams:", "to know more:", "max_num_batched_tokens 8,192"):
        assert text in done.out
    shown = run_command(capsys, "profiles", "show", target).out
    for text in ("fitted from the streams of 2 results", "150 requests, at most", "of it", "streams.not told"):
        assert text in shown
    profile = load_profile(str(target), folder=tmp_path)
    assert profile.streams.runs[0].requests == 150
    assert profile.streams.taken.keys() >= {"max_num_seqs", "launch piecewise"}  # not said, and at most 16 ran
    assert profile.default_max_num_batched_tokens == 8192
    workload = traffic(20, 50, 50, request_rate=2)
    summary = simulate(Scenario.from_dict({"profile": str(target), "workload": workload})).summary
    assert summary["simbatch"]["profile"]["error"].startswith("fitted from the streams of 2 results (300 requests")
    assert summary["simbatch"]["engine"]["max_num_batched_tokens"] == 8192


def test_the_nearest_profile_gives_memory_and_is_named(files: list[Path]) -> None:
    told: list[int] = []
    found = fit_streams(files, nearest="h100-llama-3.1-8b-bf16", name="mine", progress=told.append)
    assert told == [*range(1, 1 + num_parts(len(files)))]
    nearest = load_profile("h100-llama-3.1-8b-bf16", folder=Path())
    assert found.profile.num_gpu_blocks_for() == nearest.num_gpu_blocks_for()
    fitted = found.profile.streams
    assert fitted.taken["KV capacity"] == "h100-llama-3.1-8b-bf16's"
    assert fitted.taken["attention"] == "h100-llama-3.1-8b-bf16's, scaled"


def bad_files(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    first, *others = content["itls"]
    yield "backwards", {**content, "itls": [[-0.001, *first[1:]], *others]}, "itls[0][0]: must be at least 0"
    yield "unsent", {k: v for k, v in content.items() if k != "start_times"}, "does not say when its requests were sent"
    yield "speculates", {**content, "output_lens": [2 * n for n in content["output_lens"]]}, "tokens on average"
    yield "short", {**content, "ttfts": content["ttfts"][:-1]}, "lists must be of one length"
    few = {k: v[:4] if isinstance(v, list) else v for k, v in content.items()}
    yield "few", few, "4 requests with tokens are too few"


def test_bad_files_are_refused_in_a_sentence(
    contents: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content, rule in bad_files(contents[0]):
        refused([written(tmp_path / f"{name}.json", content)], capsys, rule)
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps(contents[0])[:5000] + '"start_times"')
    refused([cut], capsys, "not valid JSON")
    refused([tmp_path / "none.json", cut], capsys, "cannot be read")
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    refused([large, cut], capsys, "more than 400 are not read at once")


def refused(files: list[Path], capsys: pytest.CaptureFixture[str], rule: str) -> None:
    done = run_command(capsys, "fit", *files)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert rule in done.err, done.err


def test_results_of_two_servers_are_refused(contents: list[dict[str, Any]], tmp_path: Path) -> None:
    files = [written(tmp_path / "a.json", contents[1]), written(tmp_path / "b.json", slower(contents[1], 2))]
    with pytest.raises(UserError, match=r"are of different servers: .* decodes of"):
        fit_streams(files)
    files[1] = written(tmp_path / "b.json", slower(contents[0], 3))  # no step of one is like any of the other
    with pytest.raises(UserError, match=r"no profile is that of all .* b\.json is -\d+% off in E2EL and a\.json is \+"):
        fit_streams(files)
    files[1] = written(tmp_path / "c.json", {**contents[0], "model_id": "other"})
    with pytest.raises(UserError, match="are of different models: org/planted-8B, other"):
        read_results(files)


def slower(content: dict[str, Any], times: float) -> dict[str, Any]:
    """These requests on a server that takes so many times as long."""
    longer = {key: [times * time for time in content[key]] for key in ("start_times", "ttfts")}
    return {**content, **longer, "itls": [[times * time for time in itl] for itl in content["itls"]]}


def test_graphs_end_where_the_engine_s_do(files: list[Path]) -> None:
    """At twice the seats; with 512 a launch of 200 tokens was taken for one in pieces, and 96 % off."""
    known = fit_streams(files, max_num_seqs=48)
    assert known.parts.priors.max_capture == 96
    assert "max_num_seqs" not in known.profile.streams.taken


def test_a_budget_that_the_steps_contradict_is_refused(files: list[Path]) -> None:
    with pytest.raises(UserError, match=r"do not fit into their steps under this budget .*the steps say 8,192"):
        fit_streams(files, max_num_batched_tokens=1024)


def test_one_result_is_predicted_by_no_other(files: list[Path]) -> None:
    found = fit_streams(files[:1])
    assert [run.predicted for run in found.profile.streams.runs] == [None]
    assert "from the others alone" not in found.text()


@pytest.mark.skipif(not STREAMS.exists(), reason="../shared/streams is not here: other people's streams")
def test_two_loops_of_a_real_server_predict_its_others(tmp_path: Path) -> None:
    """Of benchmarks/stream_fit's table: Llama-3.1-70B on 8 x H100, four of the runs that were not fitted."""
    paths = write_runs(STREAMS / "scicom-h100-Llama-3.1-70B-tp8.json.gz", tmp_path)
    found = fit_streams(chosen(paths, r"in1024_.*_c(10|100)_"))
    for path in chosen(paths, r"in(512|2048)_.*_c(50|200)_"):
        _, error = errors(found, path)
        assert abs(error.e2el) < 0.05
        assert abs(error.tpot) < 0.08
        assert abs(error.ttft) < 0.25


@pytest.mark.parametrize("seed", [1, 8])
def test_simulated_streams_give_back_their_steps_and_the_budget(seed: int) -> None:
    """Seed 1 has a budget of 2,048 tokens, seed 8 of 8,192; both have launches that are drawn, and a lag."""
    given = planted(seed)
    steps = rebuild_steps(streams_of(given, given.loads[1], seed, number=200))
    assert steps.is_regular.all()
    assert judge(steps).refusals == ()
    budget = given.settings["max_num_batched_tokens"]
    assert infer_budget([steps])[0] == budget
    batches = batches_of(steps, budget)
    assert batches.unplaced_tokens == 0
    assert batches.prefill_tokens.sum() == steps.streams.num_prompt_tokens.sum()
    assert (batches.prefill_tokens + batches.num_decodes <= budget * (1 + batches.num_hidden)).all()


def test_a_prompt_longer_than_the_budget_goes_into_the_step_before() -> None:
    """One decode; a prompt of 1,500 tokens ends in step 3, sent before step 1: 1,000 tokens a step hold it in two."""
    streams = Streams.of([0.0, 0.025], [0.02, 0.025], [[0.01] * 5, [0.01] * 2], [100, 1500], [6, 3])
    steps = rebuild_steps(streams)
    assert steps.first.tolist() == [0, 3]
    batches = batches_of(steps, 1000)
    assert batches.prefill_tokens.tolist() == [100, 0, 999, 501, 0, 0]
    assert batches.prefill_context.tolist() == [100, 0, 999, 1500, 0, 0]
    assert batches.begun.tolist() == [0, 2]


def solved(columns: Array, seen: Array, *priors: list[float]) -> tuple[Array, Array]:
    """Least squares of one residual and one sum an episode, and of priors of nothing: values, and their errors."""
    both, wanted = np.vstack([columns, columns, *priors]), np.concatenate([seen, seen, np.zeros(len(priors))])
    values = np.linalg.lstsq(both, wanted, rcond=None)[0]
    found = SimpleNamespace(x=values, fun=both @ values - wanted, jac=both)
    return values, scatter_of(cast("Any", found), np.ones((len(seen), 1), dtype=bool), 0, 1).errors(np.eye(2))


@pytest.mark.parametrize("number", [5, 8, 24])
def test_what_is_said_holds_however_few_the_episodes(number: int) -> None:
    """1.96 errors hold 19 of 20, where launches of some episodes are noisier than the others'."""
    rng, held = np.random.default_rng(number), []
    for _ in range(400):
        columns = np.column_stack([np.ones(number), rng.uniform(0, 1, number)])
        values, errors = solved(columns, rng.normal(0, 1 + 2 * columns[:, 1]))
        held.append(np.abs(values) <= 1.96 * errors)
    assert np.mean(held) >= 0.93


def test_one_episode_alone_tells_no_launch() -> None:
    """It fits itself: its residual is nothing, and so was the error of what it alone tells."""
    columns = np.column_stack([np.ones(12), np.append(np.zeros(11), 1.0)])
    values, errors = solved(columns, np.append(np.ones(11), 3.0), [0.0, 0.1])
    assert errors[0] < 0.1
    assert errors[1] > values[1]
