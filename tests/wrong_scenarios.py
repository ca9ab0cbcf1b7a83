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
