"""Players: how a program becomes a timeline."""
