"""Dependencies point one way: cluster → tune → gcsr."""

import pytest

import gcsr
from gcsr.native_pass import NativePass
from tests.importing import ROOT, imported, loaded

FORBIDDEN = {
    "gcsr": {"ray", "optuna", "pyarrow", "tune", "cluster", "click", "pydantic", "rich", "scipy", "statsmodels"},
    "tune": {"cluster"},
}


def test_gcsr_alone_loads_nothing_of_the_service():
    service = {"ray", "optuna", "pyarrow", "tune", "cluster", "sklearn"}
    assert not service & loaded("import sys, gcsr; print(*sys.modules)")


def test_a_config_is_checked_without_torch():
    assert "torch" not in loaded("import sys, gcsr; gcsr.TrialConfig(mode='ours').gate(); print(*sys.modules)")


def test_every_public_name_is_there():
    code = "from gcsr import *; import gcsr; print(*(name for name in dir(gcsr) if getattr(gcsr, name) is not None))"
    assert set(gcsr.__all__) <= loaded(code)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gcsr.nothing  # noqa: B018


def test_the_methods_benchmarks_run_where_there_is_no_ray():
    assert not {"ray", "optuna", "tune"} & loaded("import sys, tests.benchmarks.__main__; print(*sys.modules)")


@pytest.mark.skipif(not NativePass.available(), reason="no C compiler here")
def test_a_trial_does_not_wait_for_torchs_compiler():
    code = (
        "import sys; from gcsr import TrialConfig, load_dataset, train;"
        "train(TrialConfig(model='mlp1', mode='ours', lam=1e-3, epochs=1), load_dataset('digits')); print(*sys.modules)"
    )
    assert not {"torch._dynamo", "torch._inductor", "torch.distributed.fsdp"} & loaded(code)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_module_imports_what_lies_above_it(package):
    for path in (ROOT / package).glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & FORBIDDEN[package], path
