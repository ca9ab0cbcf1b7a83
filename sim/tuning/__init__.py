"""Searches: the best settings, the capacity, a use case's batch."""
