"""Plan and partitions → token batches."""
