"""What we change in Ray Train."""
