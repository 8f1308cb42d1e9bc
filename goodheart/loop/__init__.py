"""The pipeline: stages in order, finished ones skipped, changed ones run again."""
