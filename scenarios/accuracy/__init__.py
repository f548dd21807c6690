"""`whatif accuracy`: published measured runs become scenarios, are predicted and scored."""
