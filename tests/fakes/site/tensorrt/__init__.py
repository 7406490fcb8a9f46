"""The fake under TensorRT's own name, for processes that find it on their path; FAKE_TENSORRT says the version."""

import os

from fakes.fake_tensorrt import make_tensorrt

_made = make_tensorrt(os.environ["FAKE_TENSORRT"], plugins=os.environ.get("FAKE_PLUGINS") != "broken")
globals().update({name: value for name, value in vars(_made).items() if not name.startswith("_")})
__version__ = _made.__version__
