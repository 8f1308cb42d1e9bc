"""One file, one method, one readable loop."""
