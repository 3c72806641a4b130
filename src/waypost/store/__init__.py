"""What is kept.  `protocol` says what an engine promises; engines live in folders below, and
what they have in common beside it."""
