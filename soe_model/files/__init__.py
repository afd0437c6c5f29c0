"""Finished soups on disk."""
