"""The fake of TensorRT-RTX under its own name, for processes that find it on their path."""

import os

from fakes.fake_tensorrt import make_tensorrt

_made = make_tensorrt(os.environ["FAKE_TENSORRT"], rtx=True)
globals().update({name: value for name, value in vars(_made).items() if not name.startswith("_")})
__version__ = _made.__version__
