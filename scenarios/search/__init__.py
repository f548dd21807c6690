"""`whatif search`: from a scenario and its axes to the best plans, replayed and explained."""
