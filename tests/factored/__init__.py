"""What the factored engine must pass, written from its specification and not from its code."""
