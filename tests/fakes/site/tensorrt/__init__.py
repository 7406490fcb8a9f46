"""The fake under TensorRT's own name, for processes that find it on their path; FAKE_TENSORRT says the version."""

import os

from fakes.fake_tensorrt import make_tensorrt

globals().update(
    vars(make_tensorrt(os.environ["FAKE_TENSORRT"], plugins=os.environ.get("FAKE_PLUGINS") != "broken")),
)
