"""Many simulations: cells, on processes or a cluster; sweeps, rankings, and what another vLLM changes."""
