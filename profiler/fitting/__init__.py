"""The fit of step times: sampled steps, their features, the least squares, the held-out error."""
