"""The fake under TensorRT's own name, for processes that find it on their path; FAKE_TENSORRT says the version."""

import os

from fakes.fake_cuda import Device
from fakes.fake_tensorrt import make_tensorrt

_device = Device()
_device.stack.append("primary")  # a builder makes CUDA's primary context the thread's own
_made = make_tensorrt(os.environ["FAKE_TENSORRT"], os.environ.get("FAKE_PLUGINS") != "broken", _device)
globals().update({name: value for name, value in vars(_made).items() if not name.startswith("_")})
__version__ = _made.__version__
