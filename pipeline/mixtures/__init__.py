"""Which mixture, domain and window fills each slot of a step."""
