"""Reading a store that lies elsewhere by byte ranges."""
