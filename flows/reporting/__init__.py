"""How progress and results are shown: on a terminal, in Prefect, as pictures."""
