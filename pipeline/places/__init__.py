"""Opening the place where a corpus or a store lies: a path, or s3://."""
