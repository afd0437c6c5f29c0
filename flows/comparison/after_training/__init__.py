"""What is measured once all cells are there: answers in multiple choice, and a soup's specialists."""
