"""The stand-in for TensorRT itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.fake_cuda import FakeError
from fakes.machine import Machine

from mlpdeploy.runtime.loading import load


def test_the_fake_refuses_what_would_crash(machine: Machine, built: Path) -> None:
    """Each rule of the stand-in, broken once."""
    session: Any = load(built, backend="tensorrt")
    api, engine = session._engine.api, session._engine.engine
    with session._engine.cuda.current():
        stream = session._engine.cuda.create_stream()
        handle, scratch = int(stream), session._engine.cuda.allocate(4096)
        context = api.create_context(engine)
        with pytest.raises(FakeError, match="a shape before the profile"):
            context.set_input_shape("input", (1, 3, 32, 32))
        assert context.set_optimization_profile_async(1, handle)
        assert not context.set_input_shape("input", (1, 3, 32, 32))  # below the profile
        with pytest.raises(FakeError, match="an address before the shapes"):
            context.set_tensor_address("input", scratch)
        assert context.set_input_shape("input", (2, 3, 32, 32))
        with pytest.raises(FakeError, match="no scratch memory"):
            context.execute_async_v3(handle)
        api.give_scratch(context, scratch, 4096)
        with pytest.raises(FakeError, match="has no address"):
            context.execute_async_v3(handle)
        with pytest.raises(FakeError, match="no multiple of 256"):
            context.set_tensor_address("input", scratch + 4)
        places = [session._engine.cuda.allocate(2 * 3 * 32 * 32 * 4), session._engine.cuda.allocate(2 * 7 * 4)]
        for name, place in zip(("input", "logits"), places, strict=True):
            assert context.set_tensor_address(name, place)
        session._engine.cuda.begin_capture(stream)
        with pytest.raises(FakeError, match="a capture before the shapes were run once"):
            context.execute_async_v3(handle)
        session._engine.cuda.end_capture(stream)
        assert context.execute_async_v3(handle)
        with context._alone(), pytest.raises(FakeError, match="two threads at once"):
            context.execute_async_v3(handle)
        del context
        with pytest.raises(FakeError, match="destroyed before its work had run"):
            session._engine.cuda.synchronize(stream)
