"""The doors people use: Prefect flows, the Ray jobs they submit, and the ``soe`` command. No arithmetic here."""
