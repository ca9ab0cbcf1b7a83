"""Commands as people start vLLM, written anew after public recipes, manifests and issues: what `init` makes of each."""

from __future__ import annotations

from typing import Any, NamedTuple

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


class Line(NamedTuple):
    name: str
    text: str
    gpu: str | None
    profile: str = ""  # that is chosen
    engine: dict[str, Any] = {}  # noqa: RUF012  # never changed
    not_simulated: tuple[str, ...] = ()
    refused: str = ""  # in the one sentence, where there is one


LINES = [
    Line("plain", f"vllm serve {LLAMA}", "h100", "h100-llama-3.1-8b-bf16-measured"),
    Line("underscores", f"vllm serve {LLAMA} --max_num_seqs 32 --max_model_len=8192", "4090", "rtx4090-llama-3.1-8b-bf16", {"max_num_seqs": 32, "max_model_len": 8192}),
    Line("k and K", f"vllm serve {LLAMA} --max-model-len 16K --max-num-batched-tokens 4k", "l40s", "l40s-llama-3.1-8b-bf16", {"max_model_len": 16384, "max_num_batched_tokens": 4000}),
    Line("swap space", f"vllm serve {LLAMA} --swap-space 16 --num-scheduler-steps 8 --use-v2-block-manager --max-num-seqs 128", "a100", "a100-llama-3.1-8b-bf16", {"max_num_seqs": 128}),
    Line("old api server", f"python3 -m vllm.entrypoints.openai.api_server --model {LLAMA} --host 0.0.0.0 --port 8080 --disable-log-requests --gpu-memory-utilization 0.85", "h200", "h200-llama-3.1-8b-bf16", {"gpu_memory_utilization": 0.85}),
    Line("continued lines and comments", f"# our chat\nexport VLLM_LOGGING_LEVEL=INFO\nvllm serve {LLAMA} \\\n    --max-num-seqs 48 \\   # fits\n    # --enforce-eager\n    --seed 7\n", "h100", "h100-llama-3.1-8b-bf16-measured", {"max_num_seqs": 48}),
    Line("variables", f'#!/bin/bash\nMODEL="{LLAMA}"\nSEQS=${{SEQS:-96}}\nexec vllm serve "$MODEL" --max-num-seqs $SEQS > vllm.log 2>&1 &\n', "h100", "h100-llama-3.1-8b-bf16-measured", {"max_num_seqs": 96}),
    Line("environment before", "CUDA_VISIBLE_DEVICES=0,1,2,3 VLLM_USE_V1=1 VLLM_ATTENTION_BACKEND=FLASHINFER vllm serve meta-llama/Llama-3.1-70B-Instruct -tp 4", "h100", "h100-llama-3.1-70b-bf16-tp4", {}, ("VLLM_ATTENTION_BACKEND",)),
    Line("V0", f"VLLM_USE_V1=0 vllm serve {LLAMA} --enable-chunked-prefill False --max-num-batched-tokens 131072 --max-num-seqs 256", "h100", "h100-llama-3.1-8b-bf16-measured", {"enable_chunked_prefill": False}, ("VLLM_USE_V1",)),
    Line("docker", f"docker run --runtime nvidia --gpus all -v ~/.cache/huggingface:/root/.cache/huggingface --env \"HUGGING_FACE_HUB_TOKEN=hf_secret\" -p 8000:8000 --ipc=host vllm/vllm-openai:v0.31.0 --model {LLAMA} --max-num-seqs 16 --download_dir /data/vllm --enforce-eager", "h100", "h100-llama-3.1-8b-bf16-measured", {"vllm_version": "0.31", "max_num_seqs": 16, "enforce_eager": True}),
    Line("docker of an old vLLM", f"sudo docker run -itd --rm --gpus '\"device=0,1\"' --shm-size 16g vllm/vllm-openai:v0.6.3 --model {LLAMA} --max-seq-len-to-capture 8192", "a100", "a100-llama-3.1-8b-bf16", {}, ("image",)),
    Line("podman with a command", f"podman run -d --entrypoint vllm quay.io/vllm/vllm-openai:latest serve {LLAMA} --no-enable-prefix-caching", "h100", "h100-llama-3.1-8b-bf16-measured", {"enable_prefix_caching": False}),
    Line("a shell in a container", f"docker run --gpus all rocm/vllm bash -lc \"vllm serve {LLAMA} --async-scheduling\"", "h100", "h100-llama-3.1-8b-bf16-measured", {"async_scheduling": True}),
    Line("fp8 by its name", "vllm serve RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8 --kv-cache-dtype fp8", "h100", "h100-llama-3.1-8b-fp8-kvfp8"),
    Line("fp8 by its flag", "vllm serve meta-llama/Llama-3.3-70B-Instruct --quantization fp8 --tensor-parallel-size 2", "h100", "h100-llama-3.1-70b-fp8-tp2"),
    Line("awq", "vllm serve hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4 --quantization awq_marlin --dtype half", "rtx4090", "rtx4090-llama-3.1-8b-awq"),
    Line("gptq as fast as awq", "vllm serve RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16 --max-model-len 4096", "rtx4090", "rtx4090-llama-3.1-8b-awq", {"max_model_len": 4096}),
    Line("a fine-tune", "vllm serve NousResearch/Hermes-3-Llama-3.1-8B --trust-remote-code --enable-auto-tool-choice --tool-call-parser hermes", "h100", "h100-llama-3.1-8b-bf16-measured"),
    Line("a distilled model", "vllm serve deepseek-ai/DeepSeek-R1-Distill-Llama-70B -tp 4 --enable-reasoning --reasoning-parser deepseek_r1 --max-model-len 32768", "h100", "h100-llama-3.1-70b-bf16-tp4", {"max_model_len": 32768}),
    Line("a short context", "vllm serve meta-llama/Meta-Llama-3-8B-Instruct", "h100", "h100-llama-3.1-8b-bf16-measured", {"max_model_len": 8192}),
    Line("as long as fits", f"vllm serve {LLAMA} --max-model-len auto", "l40s", "l40s-llama-3.1-8b-bf16"),
    Line("speculative", f"vllm serve {LLAMA} --speculative-config '{{\"method\": \"eagle3\", \"model\": \"yuhuili/EAGLE3-LLaMA3.1-Instruct-8B\", \"num_speculative_tokens\": 3}}'", "h100", "h100-llama-3.1-8b-bf16-measured", {}, ("--speculative-config",)),
    Line("LoRA", f"vllm serve {LLAMA} --enable-lora --lora-modules sql=/lora/sql chat=/lora/chat --max-loras 4 --max-lora-rank 64", "a100", "a100-llama-3.1-8b-bf16", {}, ("--enable-lora", "--lora-modules", "--max-loras", "--max-lora-rank")),
    Line("a draft of V0", f"vllm serve {LLAMA} --speculative-model '[ngram]' --num-speculative-tokens 5 --ngram-prompt-lookup-max 4", "h100", "h100-llama-3.1-8b-bf16-measured", {}, ("--speculative-model", "--num-speculative-tokens")),
    Line("images", f"vllm serve {LLAMA} --limit-mm-per-prompt '{{\"image\": 4}}' --mm-encoder-tp-mode data", "h100", "h100-llama-3.1-8b-bf16-measured", {}, ("--limit-mm-per-prompt",)),
    Line("a compilation config", f"vllm serve {LLAMA} --compilation-config '{{\"cudagraph_capture_sizes\": [1, 2, 4, 8, 16, 32], \"cudagraph_mode\": \"FULL_DECODE_ONLY\", \"use_inductor\": true}}'", "h100", "h100-llama-3.1-8b-bf16-measured", {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]}, ("--compilation-config.cudagraph_mode",)),
    Line("a compilation config in dots", f"vllm serve {LLAMA} -cc.cudagraph_mode NONE -O1", "h100", "h100-llama-3.1-8b-bf16-measured", {"enforce_eager": True}),
    Line("-O0", f"vllm serve {LLAMA} -O0", "h100", "h100-llama-3.1-8b-bf16-measured", {"enforce_eager": True}),
    Line("graph sizes", f"vllm serve {LLAMA} --cudagraph-capture-sizes 1 2 4 8 16 24 32 --max-num-seqs 32", "h100", "h100-llama-3.1-8b-bf16-measured", {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 24, 32]}),
    Line("data parallel", f"vllm serve {LLAMA} --data-parallel-size 4 --data-parallel-address 10.0.0.1 --data-parallel-rpc-port 13345 --api-server-count=4", "h100", "h100-llama-3.1-8b-bf16-measured", {"api_server_count": 4}),
    Line("several nodes", "vllm serve meta-llama/Llama-3.1-70B-Instruct -tp 4 --nnodes 2 --node-rank 0 --master-addr 10.0.0.2 --distributed-executor-backend ray --pipeline-parallel-size 2", "h100", "h100-llama-3.1-70b-bf16-tp4", {}, ("--nnodes", "--pipeline-parallel-size")),
    Line("prefill apart from decode", f"vllm serve {LLAMA} --kv-transfer-config '{{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"kv_both\"}}' --port 8100", "h100", "h100-llama-3.1-8b-bf16-measured", {}, ("--kv-transfer-config",)),
    Line("LMCache", f"LMCACHE_CONFIG_FILE=/c.yaml vllm serve {LLAMA} --kv-offloading-size 40 --kv-offloading-backend lmcache --kv-events-config '{{\"enable_kv_cache_events\": true}}'", "h100", "h100-llama-3.1-8b-bf16-measured", {}, ("--kv-offloading-size", "--kv-offloading-backend")),
    Line("KV bytes", f"vllm serve {LLAMA} --kv-cache-memory-bytes 20G --max-model-len 8192", "h100", "h100-llama-3.1-8b-bf16-measured", {"num_gpu_blocks_override": 10240}),
    Line("a priority queue", f"vllm serve {LLAMA} --scheduling-policy priority --long-prefill-token-threshold 2048 --watermark 0.01", "h100", "h100-llama-3.1-8b-bf16-measured", {"scheduling_policy": "priority", "long_prefill_token_threshold": 2048, "watermark": 0.01}),
    Line("a blog's dashes", f"vllm serve {LLAMA} \u2013max-num-seqs 8 \u2014served-model-name \u201cmy chat\u201d", "h100", "h100-llama-3.1-8b-bf16-measured", {"max_num_seqs": 8}),
    Line("a benchmark behind it", f"vllm serve {LLAMA} --max-num-seqs 64 && vllm bench serve --model {LLAMA} --dataset-name random --random-input-len 512 --random-output-len 64 --request-rate 4 --num-prompts 200 --goodput ttft:500 tpot:40", "h100", "h100-llama-3.1-8b-bf16-measured", {"max_num_seqs": 64}),
    Line("a flag of tomorrow", f"vllm serve {LLAMA} --frobnicate 3 --max-num-seqs 8", "h100", "h100-llama-3.1-8b-bf16-measured", {"max_num_seqs": 8}, ("--frobnicate",)),
    Line("a profile of its own node", "vllm serve Qwen/Qwen3-32B -tp 2 --enable-expert-parallel --reasoning-parser qwen3", "rtxpro6000", "rtxpro6000-qwen3-32b-bf16-tp2", {}, ("--enable-expert-parallel",)),
    Line("no profile", "vllm serve mistralai/Mixtral-8x22B-Instruct-v0.1 -tp 8", "t4", refused="simbatch estimate mistralai/Mixtral-8x22B-Instruct-v0.1 --gpu t4 --tensor-parallel-size 8 -o mine.json"),
    Line("another number of GPUs", "vllm serve meta-llama/Llama-3.1-70B-Instruct -tp 8", "a100", refused="of this model there are a100-llama-3.1-70b-bf16-tp4"),
    Line("embeddings", "docker run vllm/vllm-openai:latest --task embedding --model intfloat/multilingual-e5-large", "l4", refused="--task: only generation is simulated"),
    Line("pooling", "vllm serve BAAI/bge-m3 --runner pooling", "l4", refused="--runner: only generation is simulated"),
    Line("vLLM would not start", f"vllm serve {LLAMA} --max-num-seqs 512 --max-num-batched-tokens 256", "h100", refused="--max-num-batched-tokens: vLLM needs --max-num-batched-tokens to be at least --max-num-seqs"),
    Line("too long for the card", f"vllm serve {LLAMA} --max-model-len 131072", "rtx4090", refused="--max-model-len: vLLM does not start when the KV cache cannot hold one request"),
    Line("JSON without quotes", f"vllm serve {LLAMA} --compilation-config {{level:3}}", "h100", refused="--compilation-config: must be JSON"),
    Line("two models", f"vllm serve {LLAMA} --served-model-name my --port 1 chat model", "h100", refused="stands alone: vLLM takes one model"),
    Line("no value", f"vllm serve {LLAMA} --max-num-seqs", "h100", refused="--max-num-seqs: a value must follow"),
    Line("not a number", f"vllm serve {LLAMA} --max-num-seqs many", "h100", refused="--max-num-seqs: must be a whole number (got 'many')"),
    Line("a variable of nobody", "vllm serve $MODEL_ID", "h100", refused="the model is a variable that is set nowhere here"),
    Line("no GPU", f"vllm serve {LLAMA}", None, refused="--gpu: is missing: which GPU is it?"),
    Line("no such GPU", f"vllm serve {LLAMA}", "h1000", refused="--gpu: is not known (got 'h1000')"),
    Line("another server", "docker run ghcr.io/huggingface/text-generation-inference:3 --model-id x", "h100", refused="LINE: holds no command of vLLM's"),
]  # fmt: skip
