"""Real runs and simulated ones side by side."""
