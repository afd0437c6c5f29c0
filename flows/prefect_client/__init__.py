"""How we reach a Prefect server: calls to its API, and a plug-in for its command line."""
