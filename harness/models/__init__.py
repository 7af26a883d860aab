"""Networks as data and pure functions; shared by both sides and checked by recorded tensors."""
