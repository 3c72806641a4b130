"""The home of the words with which a test is skipped for what the machine has not."""

LACKING = "this machine lacks "
