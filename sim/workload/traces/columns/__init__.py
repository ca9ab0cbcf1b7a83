"""Checked columns from what a file's columns say."""
