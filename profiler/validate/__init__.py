"""`simbatch validate`: real runs and simulated ones side by side."""
