"""vLLM's V1 scheduler: who runs, who waits, who is preempted, on which blocks."""

from simbatch.sim import compiled

compiled.check()  # before the first module that may be
