"""What a pretraining run does beside the arithmetic."""
