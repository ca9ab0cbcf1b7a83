"""A scenario's requests in real time on a running OpenAI-compatible server, by a client of our own."""
