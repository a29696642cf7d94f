"""Shared mathematics and networks: functions and small distributions, no methods."""
