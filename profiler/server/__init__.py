"""A real server: started, asked what it is, sent requests to in real time, its steps and answers read."""
