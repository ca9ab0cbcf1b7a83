"""A result as one HTML file that anybody opens: the answer, interactive charts, figures, how to reproduce it."""
