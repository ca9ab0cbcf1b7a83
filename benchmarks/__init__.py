"""Scripts that measure; no test times anything."""
