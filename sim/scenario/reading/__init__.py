"""YAML files as plain values that know where they stand."""
