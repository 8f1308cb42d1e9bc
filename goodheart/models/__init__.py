"""Plain networks: no training, no text."""
