"""What is kept.  `protocol` says what an engine promises; engines live in folders below."""
