"""`whatif sweep`: many variants of one scenario, streamed to a table that is the same bytes however it was made."""
