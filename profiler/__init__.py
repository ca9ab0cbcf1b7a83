"""From measurements to profiles: op tables composed to steps, the fit, and its held-out error."""
