"""The simulator: scenarios, requests, step times, scheduler, engine, results, and searches over them."""
