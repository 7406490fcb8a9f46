"""What clients see of a server: REST, gRPC, pictures, metrics, the web page. Knows models by name only."""
