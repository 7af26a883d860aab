"""The speculative decoder; never imports `reference`."""
