"""The engine behind ``FrozenPrefixCache``: what the frozen first layers compute is kept and read back."""
