"""Campaigns that try to break the programs: faults, endurance, random input."""
