"""Profiles that ship, as JSON files named `<gpu>-<model>-<weights>[-kvfp8][-tpN].json`."""
