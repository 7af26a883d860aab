"""Where decodes happen: decoders found and built, one decode, many decodes."""
