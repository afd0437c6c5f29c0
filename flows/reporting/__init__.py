"""How progress and results are shown, wherever."""
