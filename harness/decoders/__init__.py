"""A decoder under test: found, built, and run in this process or in its own."""
