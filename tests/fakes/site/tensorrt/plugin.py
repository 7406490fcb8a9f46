"""`tensorrt.plugin` of the fake, where its version has one."""

from fakes.fake_quick_plugin import make_quick_plugins

import tensorrt

_made = make_quick_plugins(tensorrt)
globals().update({name: value for name, value in vars(_made).items() if not name.startswith("_")})
