"""Real vLLM on a GPU that is not there: platform, worker and times of `simbatch serve`."""
