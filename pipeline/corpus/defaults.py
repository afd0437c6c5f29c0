"""How much of a corpus may be lost unless a setting says otherwise: one place for builds and for a specialist's texts.

It imports nothing, so that the commands, whose options are the settings, still start at once.
"""

MAX_BAD_DOCUMENTS = 100
"""Documents that cannot be read."""
MAX_DAMAGED_FILES = 0
"""Files that end early, or of which nothing can be read."""
