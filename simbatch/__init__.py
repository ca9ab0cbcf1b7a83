"""A simulator of LLM inference serving, calibrated by real GPU profiles."""
