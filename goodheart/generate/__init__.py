"""Token ids in; tokens, log-probabilities and how each ended out."""
