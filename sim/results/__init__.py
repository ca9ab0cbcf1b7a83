"""Runs put together: the table of experiments (candidates, loads, seeds), and how results are written to disk."""
