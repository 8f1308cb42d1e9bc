"""Settings of the stages, apart from their work: nothing heavy is imported to tell a wrong one."""
