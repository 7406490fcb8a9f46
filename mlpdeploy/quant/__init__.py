"""Precision: half types and Q/DQ nodes in the graph, from calibration data, with proof of what they cost."""
