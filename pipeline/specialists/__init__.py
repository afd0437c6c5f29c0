"""A few texts → specialist sets and domain weights."""
