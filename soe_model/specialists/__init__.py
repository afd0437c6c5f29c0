"""Domain weights → a specialist: made, learned, measured, written."""
