"""What the operators mean: contract, shape rule, torch reference, ONNX function. Who runs them stands elsewhere."""
