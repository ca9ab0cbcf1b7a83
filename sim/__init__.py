"""The simulation: scenario, workload, cost models, scheduler, engine, results, searches; no file here measures."""
