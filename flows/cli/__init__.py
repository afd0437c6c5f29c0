"""The `soe` command."""
