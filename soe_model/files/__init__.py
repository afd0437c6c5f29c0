"""A finished soup on disk."""
