"""Measurements: complexity, speed and benchmark tables."""
