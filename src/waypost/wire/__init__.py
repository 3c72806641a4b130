"""What goes out: the HTTP client that delivers, and the policy on where it may go."""
