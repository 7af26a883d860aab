"""Published code under test, unedited: `published` builds what a checkout holds, `sampler` makes a decoder of it."""

from harness.adapters.published import Published, Sampler, published

__all__ = ["Published", "Sampler", "published"]
