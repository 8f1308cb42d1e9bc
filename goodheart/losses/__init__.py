"""Pure maths on tensors: log-probabilities in, (loss, metrics) out."""
