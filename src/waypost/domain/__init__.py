"""What is true: values and decisions.  No I/O, no clock, no randomness, no logging."""
