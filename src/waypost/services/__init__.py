"""What can be asked of us, in terms of the domain, a store and a sender."""
