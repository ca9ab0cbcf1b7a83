"""Wrong scenario files, each with what its answer must say."""

from __future__ import annotations

from typing import NamedTuple

PROFILE = "profile: {num_gpu_blocks: 1000, step_time: {base_s: 0.01}}\n"
WORKLOAD = """\
workload:
  num_prompts: 10
  request_rate: 3
  prompt_len: {distribution: fixed, mean: 10}
  output_len: {distribution: lognormal, mean: 10, cv: 1}
"""
GOOD = PROFILE + WORKLOAD  # six lines: what a case adds stands in line 7


class Wrong(NamedTuple):
    name: str
    text: str
    place: str  # after the file's name
    rule: str
    value: str = ""  # as shown after "got"
    mend: str = ""


def in_profile(old: str, new: str) -> str:
    assert old in PROFILE
    return PROFILE.replace(old, new) + WORKLOAD


def in_workload(old: str, new: str) -> str:
    assert old in WORKLOAD
    return PROFILE + WORKLOAD.replace(old, new)


SYNTAX = [
    Wrong("empty", "", ":1:1", "the file is empty", mend="`profile:` and `workload:`"),
    Wrong(
        "comments only",
        "# nothing\n",
        ":1:1",
        "the file is empty",
        mend="`simbatch scenarios copy bursty` gives one",
    ),
    Wrong("a list", "- 1\n", ":1:1", "must be a mapping", mend="`profile:`"),
    Wrong("text", "hello\n", ":1:1", "must be a mapping", "'hello'", "`profile:`"),
    Wrong("tab", GOOD + "engine:\n\tmax_num_seqs: 3\n", ":8:1", "tabs", r"'\tmax_num_seqs: 3'", "spaces"),
    Wrong("no colon", GOOD + "seed\nslo: {}\n", ":7:1", "needs a colon and a space", "'seed'", "`key: value`"),
    Wrong("no space", GOOD + "seed:7\nslo: {}\n", ":7:1", "a colon and a space", "'seed:7'", "`key: value`"),
    Wrong("indent", GOOD + "seed: 1\n  slo: {}\n", ":8:6", "does not fit the line above", "'  slo: {}'", "indent"),
    Wrong("open brace", GOOD + "slo: {ttft_ms: 1\n", ":7:6", "never closed", "'slo: {ttft_ms: 1'", "close it"),
    Wrong("open quote", GOOD + "seed: 'x\n", ":7:7", "quote is opened", '"seed: \'x"', "close it"),
    Wrong("no comma", GOOD + "slo: {ttft_ms: 1 tpot_ms: 2}\n", ":7:25", "comma", "tpot_ms", "commas"),
    Wrong("at sign", GOOD + "seed: @x\n", ":7:7", "cannot start with @", "'seed: @x'", "quote the value"),
    Wrong("control character", GOOD + "seed: \x01\n", ":7:7", "not allowed in YAML", r"'\x01'", "remove it"),
    Wrong("two documents", GOOD + "---\nseed: 2\n", ":7:1", "one document", mend="`---`"),
    Wrong("duplicate key", GOOD + "seed: 1\nseed: 2\n", ":8:1 seed", "duplicate key", "2", "keep one"),
    Wrong("duplicate below", GOOD + "slo: {ttft_ms: 1, ttft_ms: 2}\n", ":7:19 slo.ttft_ms", "duplicate key", "2"),
    Wrong("tag", GOOD + "seed: !!int 7\n", ":7:7 seed", "tags are not allowed", "'!!int'", "remove the tag"),
    Wrong(
        "python tag",
        GOOD + "seed: !!python/object/apply:os.system [ls]\n",
        ":7:7 seed",
        "tags are not allowed",
        "'!!python/object/apply:os.system'",
    ),
    Wrong("nan", GOOD + "slo: {ttft_ms: .nan}\n", ":7:16 slo.ttft_ms", "must be finite", "'.nan'", "a finite number"),
    Wrong(
        "infinity", in_workload("rate: 3", "rate: -.inf"), ":4:17 workload.request_rate", "must be finite", "'-.inf'"
    ),
    Wrong("too large", GOOD + "slo: {ttft_ms: 1e999}\n", ":7:16 slo.ttft_ms", "must be finite", "'1e999'"),
    Wrong("digits", GOOD + f"seed: {'9' * 50}\n", ":7:7 seed", "at most 40 digits", "'9999", "finite"),
    Wrong("alias of nothing", GOOD + "seed: *x\n", ":7:7 seed", "needs an anchor", "'*x'", "quote it"),
    Wrong("alias in itself", GOOD + "engine: &x {a: *x}\n", ":7:16 engine.a", "inside its anchor", "'*x'"),
    Wrong("merge key", GOOD + "slo: {<<: {ttft_ms: 1}}\n", ":7:7 slo.<<", "merge keys", "'<<'", "write the keys out"),
    Wrong("number as key", GOOD + "1.5: 2\n", ":7:1", "a key must be a name", "1.5", "quote it"),
    Wrong("list as key", GOOD + "? [1]\n: 2\n", ":7:3", "a key must be a name"),
    Wrong("deep", GOOD + "seed: " + "[" * 60, ":7:46", "values are nested more than 40 deep", mend="flatten"),
    Wrong(
        "alias bomb",
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in ["ab", "bc", "cd", "de"]),
        ":",
        "more than 20000 values",
        mend="an alias counts",
    ),
]

KEYS = [
    Wrong("no profile", WORKLOAD, ":1:1 profile", "required, but missing", mend="add `profile: ...`"),
    Wrong("no workload", PROFILE, ":1:1 workload", "required, but missing", mend="which requests arrive"),
    Wrong("top level", GOOD + "sede: 3\n", ":7:1 sede", "unknown key", "3", "did you mean seed?"),
    Wrong("elsewhere", GOOD + "max_num_seqs: 3\n", ":7:1 max_num_seqs", "unknown key", "3", "engine.max_num_seqs?"),
    Wrong("near", GOOD + "engine: {max_num_seq: 3}\n", ":7:10 engine.max_num_seq", "unknown key", "3", "max_num_seqs?"),
    Wrong("dashes", GOOD + "slo: {ttft-ms: 3}\n", ":7:7 slo.ttft-ms", "unknown key", "3", "did you mean ttft_ms?"),
    Wrong("no space in braces", GOOD + "engine: {seed:3}\n", ":7:10 engine.seed:3", "unknown key", "null"),
    Wrong("far", GOOD + "slo: {zzz: 1}\n", ":7:7 slo.zzz", "unknown key", "1", "known here: ttft_ms, tpot_ms, e2el_ms"),
    Wrong("unit left out", GOOD + "slo: {ttft: 1}\n", ":7:7 slo.ttft", "unknown key", "1", "did you mean ttft_ms?"),
    Wrong(
        "in a length",
        in_workload("fixed, mean", "fixed, men"),
        ":5:37 workload.prompt_len.men",
        "unknown key",
        "10",
        "did you mean mean?",
    ),
    Wrong(
        "inline profile",
        in_profile("base_s", "bas_s"),
        ":1:45 profile.step_time.bas_s",
        "unknown key",
        "0.01",
        "did you mean base_s?",
    ),
    Wrong("null", GOOD + "seed:\n", ":7:6 seed", "must be a whole number", "null", "leave the line out"),
    Wrong("policy without a name", GOOD + "policy: {x: 1}\n", ":7:1 policy.name", "required, but missing"),
]

VALUES = [
    Wrong("text", GOOD + "seed: '7'\n", ":7:7 seed", "must be a whole number", "'7'", "without quotes"),
    Wrong("yaml 1.1 number", GOOD + "seed: 1_000\n", ":7:7 seed", "must be a whole number", "'1_000'", "underscores"),
    Wrong("sexagesimal", GOOD + "seed: 1:30\n", ":7:7 seed", "must be a whole number", "'1:30'", "the number alone"),
    Wrong("whole float", GOOD + "seed: 7.0\n", ":7:7 seed", "must be a whole number", "7.0", "write 7"),
    Wrong("bool as number", GOOD + "seed: true\n", ":7:7 seed", "must be a whole number", "true", "not true or false"),
    Wrong("negative", GOOD + "seed: -1\n", ":7:7 seed", "must be at least 0", "-1", "raise it"),
    Wrong(
        "unit in a value",
        GOOD + "slo: {ttft_ms: 200ms}\n",
        ":7:16 slo.ttft_ms",
        "must be a number",
        "'200ms'",
        "its unit is in the key's name",
    ),
    Wrong("zero limit", GOOD + "slo: {tpot_ms: 0}\n", ":7:16 slo.tpot_ms", "must be more than 0", "0", "raise it"),
    Wrong(
        "yes",
        GOOD + "engine: {step_noise: yes}\n",
        ":7:22 engine.step_noise",
        "must be true or false",
        "'yes'",
        "write true or false",
    ),
    Wrong(
        "choice",
        GOOD + "engine: {batching: statc}\n",
        ":7:20 engine.batching",
        "must be continuous or static",
        "'statc'",
        "did you mean static?",
    ),
    Wrong("section", GOOD + "engine: 3\n", ":7:9 engine", "must be a mapping", "3", "its keys: max_num_seqs"),
    Wrong(
        "length",
        in_workload("{distribution: fixed, mean: 10}", "512"),
        ":5:15 workload.prompt_len",
        "must be a mapping with a distribution",
        "512",
        "write {distribution: fixed, mean: 512}",
    ),
    Wrong("watermark", GOOD + "engine: {watermark: 1}\n", ":7:21 engine.watermark", "must be less than 1", "1"),
    Wrong(
        "block size", GOOD + "engine: {block_size: 4096}\n", ":7:22 engine.block_size", "at most 1024", "4096", "lower"
    ),
    Wrong("profile type", "profile: [1]\n" + WORKLOAD, ":1:10 profile", "must be a sh"),
    Wrong(
        "profile name", "profile: rtx\n" + WORKLOAD, ":1:10 profile", "neither a shipped profile nor a file", "'rtx'"
    ),
    Wrong("zero step time", in_profile("0.01", "0"), ":1:44 profile.step_time", "must be positive", "{'base_s': 0}"),
    Wrong("negative step", in_profile("0.01", "-1"), ":1:53 profile.step_time.base_s", "must be at least 0", "-1"),
    Wrong("text step", in_profile("0.01", "fast"), ":1:53 profile.step_time.base_s", "must be a number", "'fast'"),
    Wrong(
        "negative launch",
        in_profile("0.01}", "0.01}, host: {launch: {none: {base_s: -1}}}"),
        ":1:91 profile.host.launch.none.base_s",
        "must be at least 0",
        "-1",
        "raise it",
    ),
    Wrong(
        "no distribution",
        in_profile("0.01}", "0.01}, host: {spread: {none: {share: [0, 1], ratio: [1, 2]}}}"),
        ":1:82 profile.host.spread.none",
        "the mean ratio must be 1, not 1.5000",
        "{'share': [0, 1], 'ratio': [1, 2]}",
        "divide every ratio by that",
    ),
    Wrong(
        "front end's unit",
        in_profile("0.01}", "0.01}, front_end: {network_s: 2ms}"),
        ":1:83 profile.front_end.network_s",
        "must be a number",
        "'2ms'",
        "its unit is in the key's name",
    ),
    Wrong("host as text", GOOD + "host: h100\n", ":7:7 host", "mapping that names a profile", "'h100'", "{from: h100}"),
    Wrong(
        "capture size of 0",
        GOOD + "engine: {cudagraph_capture_sizes: [8, 0]}\n",
        ":7:39 engine.cudagraph_capture_sizes[1]",
        "must be at least 1",
        "0",
        "raise it",
    ),
    Wrong("no server", GOOD + "engine: {api_server_count: 0}\n", ":7:28 engine.api_server_count", "at least 1", "0"),
    Wrong(
        "queue", GOOD + "engine: {max_num_queued_reqs: -1}\n", ":7:31 engine.max_num_queued_reqs", "at least 0", "-1"
    ),
    Wrong("policy as text", GOOD + "policy: fixed\n", ":7:9 policy", "mapping", "'fixed'", "policy: {name: fixed}"),
    Wrong("rate", in_workload("rate: 3", "rate: 0"), ":4:17 workload.request_rate", "must be more than 0", "0"),
    Wrong("rate with unit", in_workload("rate: 3", "rate: 3/s"), ":4:17 workload.request_rate", "a number", "'3/s'"),
    Wrong("no rate", in_workload("  request_rate: 3\n", ""), ":2:1 workload.request_rate", "required, but missing"),
    Wrong(
        "distribution",
        in_workload("fixed", "fixd"),
        ":5:30 workload.prompt_len.distribution",
        "must be one of fixed",
        "'fixd'",
        "did you mean fixed?",
    ),
    Wrong(
        "no distribution",
        in_workload("distribution: fixed, ", ""),
        ":5:3 workload.prompt_len.distribution",
        "required, but missing",
        mend="add `distribution: ...`",
    ),
    Wrong(
        "shares",
        GOOD + "  priorities: {high: 0.5, normal: 0.6}\n",
        ":7:15 workload.priorities",
        "sum to 1",
        "{'high': 0.5, 'normal': 0.6}",
    ),
]

# What only the profile or the policy can tell: these are found when a scenario is resolved.
RULES = [
    Wrong(
        "tokens below seqs",
        GOOD + "engine: {max_num_seqs: 64, max_num_batched_tokens: 32}\n",
        ":7:52 engine.max_num_batched_tokens",
        "--max-num-batched-tokens to be at least --max-num-seqs (64)",
        "32",
        "raise it to 64",
    ),
    Wrong(
        "cache too small",
        GOOD + "engine: {max_model_len: 15985}\n",
        ":7:25 engine.max_model_len",
        "999 usable blocks of 16 hold 15984 tokens",
        "15985",
        "at most 15984",
    ),
    Wrong(
        "override too small",
        GOOD + "engine: {num_gpu_blocks_override: 512}\n",
        ":7:1 engine.max_model_len",
        "511 usable blocks",
        "8192",
        "engine.max_model_len to at most 8176",
    ),
    Wrong(
        "unchunked prompt",
        GOOD + "engine: {enable_chunked_prefill: false, max_num_batched_tokens: 2048}\n",
        ":7:65 engine.max_num_batched_tokens",
        "--max-model-len (8192)",
        "2048",
        "enable_chunked_prefill: true",
    ),
    Wrong(
        "active seqs",
        GOOD + "engine: {max_num_active_seqs: 300}\n",
        ":7:31 engine.max_num_active_seqs",
        "at most --max-num-seqs (256)",
        "300",
        "lower it to 256",
    ),
    Wrong(
        "long prefill threshold",
        GOOD + "engine: {long_prefill_token_threshold: 9000}\n",
        ":7:40 engine.long_prefill_token_threshold",
        "--max-model-len (8192)",
        "9000",
        "0 switches it off",
    ),
    Wrong(
        "no capture size",
        GOOD + "engine: {max_cudagraph_capture_size: 0}\n",
        ":7:38 engine.max_cudagraph_capture_size",
        "--max-cudagraph-capture-size to be at least 1",
        "0",
        "enforce_eager: true",
    ),
    Wrong(
        "two largest capture sizes",
        GOOD + "engine: {cudagraph_capture_sizes: [8, 4], max_cudagraph_capture_size: 16}\n",
        ":7:71 engine.max_cudagraph_capture_size",
        "to be the largest of --cudagraph-capture-sizes (8)",
        "16",
        "remove one of the two",
    ),
    Wrong(
        "capture sizes above the budget",
        GOOD + "engine: {cudagraph_capture_sizes: [4096]}\n",
        ":7:35 engine.cudagraph_capture_sizes",
        "--max-num-batched-tokens (2048), and none is left",
        "[4096]",
        "enforce_eager: true",
    ),
    Wrong(
        "host of nobody",
        GOOD + "host: {from: h100}\n",
        ":7:14 host.from",
        "neither a shipped profile nor a file",
        "'h100'",
    ),
    Wrong(
        "two owners of the order",
        GOOD + "policy: {name: fixed}\nengine: {scheduling_policy: priority}\n",
        ":8:29 engine.scheduling_policy",
        "policy fixed owns the order",
        "'priority'",
        "set policy: {name: vllm}",
    ),
    Wrong(
        "static vllm",
        GOOD + "engine: {batching: static}\n",
        ":7:20 engine.batching",
        "policy vllm does not support static batching",
        "'static'",
        "another policy",
    ),
    Wrong(
        "noise", GOOD + "engine: {step_noise: true}\n", ":7:22 engine.step_noise", "no distribution of noise", "true"
    ),
    Wrong(
        "memory of an inline profile",
        GOOD + "engine: {gpu_memory_utilization: 0.5}\n",
        ":7:34 engine.gpu_memory_utilization",
        "no memory figures",
        "0.5",
        "profile.num_gpu_blocks",
    ),
    Wrong(
        "policy", GOOD + "policy: {name: adaptve}\n", ":7:16 policy.name", "no such policy", "'adaptve'", "adaptive?"
    ),
    Wrong(
        "policy parameter",
        GOOD + "policy: {name: fixed, batchsize: 3}\n",
        ":7:23 policy.batchsize",
        "unknown key",
        "3",
        "did you mean batch_size?",
    ),
    Wrong(
        "text for a policy's number",
        GOOD + "policy: {name: fixed, batch_size: '3'}\n",
        ":7:35 policy.batch_size",
        "must be a whole number",
        "'3'",
        "without quotes",
    ),
    Wrong(
        "policy bounds",
        GOOD + "policy: {name: adaptive, min_batch_size: 65}\n",
        ":7:42 policy.min_batch_size",
        "must not be above max_batch_size (64)",
        "65",
    ),
    Wrong(
        "two targets",
        GOOD + "policy: {name: adaptive, target_tpot_ms: 50, target_ttft_ms: 1}\n",
        ":7:9 policy",
        "only one of target_tpot_ms",
        "{'target_tpot_ms': 50, 'target_ttft_ms': 1}",
    ),
    Wrong("policy file", GOOD + "policy: {name: 'my.py:Mine'}\n", ":7:16 policy.name", "no file my.py", "'my.py:Mine'"),
    Wrong("policy module", GOOD + "policy: {name: 'no.such:Mine'}\n", ":7:16 policy.name", "cannot import no.such"),
]

CLUSTERS = [
    Wrong("no replicas", GOOD + "cluster: {replicas: 0}\n", ":7:21 cluster.replicas", "at least 1", "0", "raise it"),
    Wrong("no engines", GOOD + "cluster: {}\n", ":7:10 cluster", "either replicas or groups", "{}", "replicas: 4"),
    Wrong("both", GOOD + "cluster: {replicas: 2, groups: [{}]}\n", ":7:10 cluster", "either replicas or groups"),
    Wrong("no groups", GOOD + "cluster: {groups: []}\n", ":7:19 cluster.groups", "at least 1 entries", "[]"),
    Wrong(
        "router",
        GOOD + "cluster: {replicas: 2, router: {name: leastrequests}}\n",
        ":7:39 cluster.router.name",
        "no such router",
        "'leastrequests'",
        "did you mean least_requests?",
    ),
    Wrong(
        "router as text",
        GOOD + "cluster: {replicas: 2, router: random}\n",
        ":7:32 cluster.router",
        "must be a mapping with a name",
        "'random'",
        "router: {name: random}",
    ),
    Wrong(
        "router parameter",
        GOOD + "cluster: {replicas: 2, router: {name: prefix_aware, maxratio: 2}}\n",
        ":7:53 cluster.router.maxratio",
        "unknown key",
        "2",
        "did you mean max_ratio?",
    ),
    Wrong(
        "profile of a group",
        GOOD + "cluster: {groups: [{replicas: 1}, {profile: h1000}]}\n",
        ":7:35 cluster.groups[1] profile",
        "neither a shipped profile nor a file",
        "'h1000'",
    ),
    Wrong(
        "engine of a group",
        GOOD + "cluster: {groups: [{engine: {max_num_seqs: 300, max_num_batched_tokens: 8}}]}\n",
        ":7:20 cluster.groups[0] engine.max_num_batched_tokens",
        "--max-num-seqs",
        "8",
    ),
    Wrong(
        "models that differ",
        GOOD + "cluster: {groups: [{profile: rtx4090-llama-3.1-8b-bf16}, {profile: rtxpro6000-qwen3-32b-bf16}]}\n",
        ":7:68 cluster.groups[1].profile",
        "must serve one model",
    ),
    Wrong(
        "an event of nobody",
        GOOD + "cluster: {replicas: 2, events: [{at: 1, replica: 2, down_s: 5}]}\n",
        ":7:50 cluster.events[0].replica",
        "there are 2 replicas, numbered from 0",
        "2",
        "name one of 0 to 1",
    ),
    Wrong(
        "down twice",
        GOOD + "cluster: {replicas: 2, events: [{at: 1, replica: 1, down_s: 5}, {at: 3, replica: 1, down_s: 1}]}\n",
        ":7:70 cluster.events[1].at",
        "replica 1 is down then, until 6 s",
        "3",
    ),
    Wrong(
        "blocks that differ",
        GOOD + "cluster: {groups: [{}, {engine: {block_size: 32}}]}\n",
        ":7:46 cluster.groups[1].engine.block_size",
        "one block_size",
        "32",
    ),
]

ALL = [*SYNTAX, *KEYS, *VALUES, *RULES, *CLUSTERS]
