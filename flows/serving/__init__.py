"""`soe serve`: a local page and an OpenAI-style HTTP service that make specialists of one soup and let them write."""
