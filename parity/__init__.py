"""simbatch's engine against vLLM's real scheduler, decision by decision."""
