"""Profiles from a recorder's files: every step of a real server, as its engine's process saw it."""
