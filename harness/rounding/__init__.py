"""How far rounding may move a number: measured on the plain reference, kept, and stated in every result."""
