"""The parts of the TensorRT backend; mlpdeploy/runtime/tensorrt.py says who does what."""
