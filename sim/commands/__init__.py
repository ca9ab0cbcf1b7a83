"""Commands of vLLM's as scenarios: `vllm serve` and `vllm bench serve`, from a shell, Docker, Compose or Kubernetes."""
