"""Intervals, growth and trends, and the Pareto set, on plain arrays."""
