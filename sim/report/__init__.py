"""Results for people: reports on the console, comparisons, pictures."""
