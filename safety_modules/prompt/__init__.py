"""Prompts: an exchange of text and images -> tensors."""
