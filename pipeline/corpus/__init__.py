"""Documents from any corpus: listed, then read file by file."""
