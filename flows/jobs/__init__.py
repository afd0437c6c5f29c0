"""Ray jobs. Each runs without Prefect too: ``python -m flows.jobs.<name> --config '<json>'``."""

import flows.cluster  # noqa: F401  (before Ray: it sets what Ray reads when it is imported)
