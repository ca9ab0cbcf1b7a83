"""Pictures of results, through matplotlib's object interface."""
