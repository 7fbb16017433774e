"""Tests against a real HTCondor pool, and the pool."""
