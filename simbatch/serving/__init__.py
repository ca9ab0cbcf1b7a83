"""A policy in real vLLM: what was tried in simulation serves unchanged (`simbatch.vllm_scheduler`)."""
