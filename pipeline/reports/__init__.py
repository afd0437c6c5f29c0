"""Reports on a finished store: its atlas, its map, and an audit."""
