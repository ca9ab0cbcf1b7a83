"""What `simbatch trace` does with a trace: describe, draw, write."""
