"""Wrong scenario files whose keys are right one by one: what breaks a rule between them, and clusters."""

from __future__ import annotations

from tests.wrong_scenarios import GOOD, KEYS, SYNTAX, VALUES, Wrong

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
