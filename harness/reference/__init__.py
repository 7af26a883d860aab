"""The sequential sampler, written plainly from the spec page; never imports `speculative`."""
