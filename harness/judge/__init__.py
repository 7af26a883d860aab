"""The judgement on decodes: form, tokens and ties, tensors and components, distances."""
