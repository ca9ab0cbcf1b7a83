"""Measurements of others as profiles, one module per source."""
