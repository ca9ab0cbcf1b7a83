"""What a run's record says: latencies, throughputs, queues, fairness, the steady state, and the registry of figures."""
