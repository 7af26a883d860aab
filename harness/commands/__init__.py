"""One module a command; each turns options into calls of the package and results into an exit status."""
