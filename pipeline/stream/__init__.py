"""The plan and the partitions → token batches."""
