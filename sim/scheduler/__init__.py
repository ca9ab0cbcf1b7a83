"""vLLM's V1 scheduler: who runs, who waits, who is preempted, on which blocks."""
