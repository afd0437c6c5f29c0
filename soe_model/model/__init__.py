"""The parts of a soup: backbone, router, bank."""
