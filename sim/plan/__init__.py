"""How many GPUs of which type, in which shape and at what cost, keep the limits for a traffic (docs/plan.md)."""
