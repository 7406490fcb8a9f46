"""How good artifacts are on labelled images: accuracy, calibration, and agreement with PyTorch."""
