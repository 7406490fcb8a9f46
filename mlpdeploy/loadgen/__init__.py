"""Load on a server that speaks the Open Inference Protocol v2: arrivals, clients, percentiles, the knee."""
