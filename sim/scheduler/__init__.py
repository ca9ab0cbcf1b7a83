"""vLLM's V1 scheduler: who runs, who waits, who is preempted, on which blocks."""

from simbatch.sim import check_compiled

check_compiled()  # before the first module that may be
