"""The stages of a store, one after the other."""
