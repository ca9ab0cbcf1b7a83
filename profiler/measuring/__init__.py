"""Measuring step times and memory of a real vLLM engine."""
