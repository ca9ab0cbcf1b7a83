"""Scenarios that ship, one YAML file each; `schema.json` describes their form to editors."""
