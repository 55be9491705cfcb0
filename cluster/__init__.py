"""Launching gcsr on clusters."""
