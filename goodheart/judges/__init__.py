"""Whatever scores an answer: reward models and plain Python functions."""
