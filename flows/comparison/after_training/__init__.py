"""What trained methods are measured with besides, once all cells are there: multiple choice, and specialists."""
