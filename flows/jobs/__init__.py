"""Ray jobs. Each runs without Prefect too: ``python -m flows.jobs.<name> --config '<json>'``."""
