"""Splitwise's measurements of whole batches of Llama-2-70B: one CSV, times in ms.

`prompt_time` is the step that prefills a batch, `token_time` the mean decode step over the batch's output. Batches were
swept at prompts of 512 alone, prompts at batch 1 alone, and no step had prefills and decodes. Repetitions take turns:
the first, third ... are fitted, the others held out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from simbatch.profiler.fitting.fit import figures, fit_decode, fit_mixed, judge, judge_bands
from simbatch.profiler.fitting.steps import Floats, Steps
from simbatch.profiler.importers.source import Fitted, Request, Source
from simbatch.profiler.importers.tables import read_columns
from simbatch.profiler.model.config import ModelConfig
from simbatch.sim.cost.error import FitError
from simbatch.sim.cost.measured_range import DecodeRange, MeasuredRange, MixedRange
from simbatch.sim.cost.step_time import TwoRegimeStepTime
from simbatch.sim.errors import Problem, UserError

CREDIT = "Splitwise (github.com/Mutinifni/splitwise-sim): prompt and token times of whole batches"
HARDWARE = {"a100": "a100-80gb", "h100": "h100-80gb"}  # h100-80gb-pcap is computed from h100-80gb, not measured
MODEL, NAME_IN_CSV = "meta-llama/Llama-2-70b", "llama2-70b"
# As published in the model's config.json; the CSV names the model and no more.
LLAMA_2_70B = ModelConfig(
    architecture="LlamaForCausalLM",
    num_hidden_layers=80,
    hidden_size=8192,
    intermediate_size=28672,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=32000,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
    dtype="float16",
)
# Its prefill is a ninth of the time of half the batch.
WRONG = {"tensor_parallel": 2, "batch_size": 64}
NUMBERS = ("tensor_parallel", "prompt_size", "batch_size", "token_size", "prompt_time", "token_time")
NOTES = (
    "whole batches of 2023: their token times hold whatever vLLM's host did then and are higher than those of today's "
    "vLLM on the same GPU",
    "batches were swept at prompts of 512 alone, and prompts at batch 1 alone; steps with prefills and decodes were "
    "not measured: a decode costs there its token and what its context costs in a decode-only step; every such step "
    "counts as outside of the measured range",
)
MS = 1e-3


class Batches:
    """The repetitions on one GPU at one degree, as prefill steps and as decode steps."""

    def __init__(self, path: Path, gpu: str, tensor_parallel_size: int) -> None:
        words, numbers = read_columns(path, ["model", "hardware"], NUMBERS)
        column = dict(zip(NUMBERS, numbers, strict=True))
        models, hardware = np.array(words[0]), np.array(words[1])
        chosen = (models == NAME_IN_CSV) & (hardware == HARDWARE[gpu])
        known = np.unique(column["tensor_parallel"][chosen]).astype(int).tolist()
        if tensor_parallel_size not in known:
            rule = f"{path} has {NAME_IN_CSV} on {HARDWARE[gpu]} with {known}"
            raise UserError(Problem("--tensor-parallel-size", rule, tensor_parallel_size))
        chosen &= column["tensor_parallel"] == tensor_parallel_size
        chosen &= ~np.logical_and.reduce([column[key] == value for key, value in WRONG.items()])
        rows = {key: values[chosen] for key, values in column.items()}
        seqs, prompt = rows["batch_size"].astype(np.int64), rows["prompt_size"].astype(np.int64)
        context = prompt + rows["token_size"].astype(np.int64) // 2  # the mean over the output
        none = np.zeros(len(seqs), dtype=np.int64)
        self.prefill = Steps(seqs, seqs * prompt, seqs * prompt, seqs * prompt * prompt, none, none, none, none)
        self.decode = Steps(none, none, none, none, seqs, seqs * context, context, context)
        self.prefill_s, self.decode_s = rows["prompt_time"] * MS, rows["token_time"] * MS
        self.is_fitted = _alternate(seqs, prompt, rows["token_size"])

    def fit(self, kv_tokens: int) -> Fitted:
        """Fit and judge; the cache's size does not matter here."""
        del kv_tokens
        fitted, held_out = self.is_fitted, ~self.is_fitted
        decode, prefill = self.decode.select(fitted), self.prefill.select(fitted)
        decode_part = fit_decode(decode, self.decode_s[fitted], _counts(decode.num_decodes))
        # Nothing was prefilled after a history, so h + q would only double the tokens.
        without_context = replace(prefill, prefill_context=np.zeros_like(prefill.prefill_context))
        mixed_part = fit_mixed(without_context, self.prefill_s[fitted], _counts(prefill.num_tokens))
        mixed_part |= {"per_context_token_s": decode_part["per_context_token_s"]}
        step_time = TwoRegimeStepTime.model_validate({"form": "two_regime", "decode": decode_part, "mixed": mixed_part})
        cost = step_time.cost_model()
        decode, prefill = self.decode.select(held_out), self.prefill.select(held_out)
        decode_s, prefill_s = self.decode_s[held_out], self.prefill_s[held_out]
        error = FitError(
            design=f"{int(fitted.sum())} measured batches fitted, {len(decode)} other repetitions of them held out: "
            "what lies between the measured batches was not measured; mixed steps neither",
            decode=judge(cost, decode, decode_s),
            decode_bands=judge_bands(cost, decode, decode_s),
            prefill=judge(cost, prefill, prefill_s),
            mixed=figures(np.array([]), np.array([])),
        )
        return Fitted(step_time, error, self._range())

    def _range(self) -> MeasuredRange:
        decode, prefill = self.decode, self.prefill
        mean = (int(decode.min_context.min()), int(decode.max_context.max()))
        return MeasuredRange(
            decode=DecodeRange(
                num_decodes=_ends(decode.num_decodes), mean_context=mean, decode_context=_ends(decode.decode_context)
            ),
            mixed=MixedRange(
                num_tokens=_ends(prefill.num_tokens),
                prefill_tokens=_ends(prefill.num_tokens),
                mean_history=(0, 0),
                num_decodes=(0, 0),
                mean_context=(0, 0),
                decode_context=(0, 0),
            ),
        )


def read_source(request: Request) -> Source:
    """Read `perf_model.csv` of DIR; raises UserError for what is not in it."""
    request.refuse(
        model="--model", model_config="--model-config", quantisation="--quantization", all_reduce="--all-reduce"
    )
    if request.gpu not in HARDWARE:
        raise UserError(Problem("--gpu", f"must be one of {', '.join(HARDWARE)}", request.gpu))
    if request.kv_cache_dtype != "auto":
        raise UserError(Problem("--kv-cache-dtype", "was not measured here", request.kv_cache_dtype, "leave it out"))
    batches = Batches(request.folder / "perf_model.csv", request.gpu, request.tensor_parallel_size)
    return Source(
        model=MODEL,
        gpu=request.gpu,
        quantisation="fp16",
        kv_cache_dtype="float16",
        vllm_version="unstated, 2023",
        credit=CREDIT,
        licence="MIT",
        config=LLAMA_2_70B,
        fit=batches.fit,
        notes=NOTES,
    )


def _alternate(*keys: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """True for the first, third ... row of each combination of keys."""
    seen: dict[tuple[float, ...], int] = {}
    chosen = []
    for key in zip(*keys, strict=True):
        seen[key] = seen.get(key, 0) + 1
        chosen.append(seen[key] % 2 == 1)
    return np.array(chosen)


def _counts(values: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int]:
    return [int(value) for value in np.unique(values)]


def _ends(values: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[int, int]:
    return int(values.min()), int(values.max())
