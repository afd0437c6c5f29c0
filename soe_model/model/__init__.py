"""The parts of a soup: backbone, bank and router."""
