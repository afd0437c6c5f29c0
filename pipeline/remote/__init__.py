"""A store elsewhere, read by range."""
