"""Many simulations: sweeps over settings, and the search for the best ones."""
