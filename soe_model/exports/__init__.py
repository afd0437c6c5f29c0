"""A soup and its specialists in the formats of other tools."""
