"""`simbatch profile`: a real vLLM server is started, driven and measured."""
