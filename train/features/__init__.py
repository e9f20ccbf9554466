"""A store of vision features, computed once."""
