"""The deployments and their flows: check, submit, follow, publish."""
