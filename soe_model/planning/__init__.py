"""Memory, disk and time of a run before it starts."""
