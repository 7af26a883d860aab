"""Published code under test, unedited: `published` builds what a checkout holds, `sampler` makes a decoder of it."""

from harness.adapters._published import OF_CODE, Published, Sampler, published

__all__ = ["Published", "Sampler", "published"]

from harness.adapters._factories import PUBLISHED_FACTORIES, PUBLISHED_PREFIX, has_rounds, published_settings
from harness.adapters._parts_sdvar import examine_parts
