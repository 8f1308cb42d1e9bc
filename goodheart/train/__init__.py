"""What every training loop shares: settings, run folder, metrics, checkpoints, optimiser, parallelism."""
