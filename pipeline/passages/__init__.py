"""Documents → passages on disk."""
