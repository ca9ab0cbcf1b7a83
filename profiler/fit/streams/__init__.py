"""Profiles from streams: the detailed results of a server that nobody touches."""
