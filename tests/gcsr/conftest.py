import pytest

import gcsr.coherence
import gcsr.fused_sgd
from gcsr.native import library


@pytest.fixture(params=["compiled", "torch"], scope="module")
def gate_path(request):
    """Runs a module's tests with the compiled passes and with torch's operations."""
    if request.param == "compiled" and library() is None:
        pytest.skip("no C compiler here")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            for module in (gcsr.coherence, gcsr.fused_sgd):
                patch.setattr(module, "library", lambda: None)
        yield request.param
