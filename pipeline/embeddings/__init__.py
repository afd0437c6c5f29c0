"""Passages → unit vectors."""
