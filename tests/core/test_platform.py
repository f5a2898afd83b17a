"""The platform is chosen before jax starts, and never falls to the CPU in silence."""

import os
import stat
import subprocess
import sys

import pytest

from jaxlm.core import platform
from jaxlm.core.errors import ConfigError

SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
CPU_ONLY = not (platform.plugins("gpu") or platform.plugins("tpu"))


@pytest.fixture
def fresh(monkeypatch):
    """An environment without choices, and a jax that keeps its own."""
    names = ("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "JAX_COMPILATION_CACHE_DIR")
    for name in (*names, *SHARES):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "jax", raising=False)


@pytest.fixture
def nvidia(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    return tmp_path


@pytest.fixture
def tpu(tmp_path):
    chip = tmp_path / "sys/bus/pci/devices/0000:00:04.0"
    chip.mkdir(parents=True)
    (chip / "vendor").write_text("0x1ae0\n")
    (chip / "device").write_text("0x0063\n")
    return tmp_path


def test_devices_are_found_by_their_nodes(fresh, nvidia, tpu, tmp_path, monkeypatch):
    assert platform.accelerators(tmp_path) == ["gpu", "tpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert platform.accelerators(tmp_path) == ["tpu"]


def test_another_device_of_the_same_vendor_is_no_tpu(fresh, tpu):
    (tpu / "sys/bus/pci/devices/0000:00:04.0/device").write_text("0x0042\n")  # a network card
    assert platform.accelerators(tpu) == []


@pytest.mark.skipif(not CPU_ONLY, reason="jax is installed with an accelerator's plugin here")
@pytest.mark.parametrize("machine", ["nvidia", "tpu"])
def test_an_accelerator_without_its_package_is_refused_unless_asked_for(fresh, machine, request):
    root = request.getfixturevalue(machine)
    with pytest.raises(
        ConfigError, match="platform: .*; .*pip install -e .*; or write platform=cpu"
    ):
        platform.choose_platform(root=root)
    platform.choose_platform("cpu", root=root)
    assert os.environ["JAX_PLATFORMS"] == "cpu"


def test_an_absent_accelerator_is_refused(fresh, tmp_path):
    with pytest.raises(ConfigError, match="platform=gpu: this machine shows no NVIDIA GPU"):
        platform.choose_platform("gpu", root=tmp_path)


def test_the_user_may_choose_by_the_environment(fresh, nvidia, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    platform.choose_platform(root=nvidia)
    assert os.environ["JAX_PLATFORMS"] == "cpu"


def test_deterministic_sets_flags_for_the_gpu_alone_and_once(fresh, monkeypatch, tmp_path):
    platform.choose_platform("cpu", deterministic=True, root=tmp_path)
    assert "XLA_FLAGS" not in os.environ
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=2")
    for _ in range(2):
        platform.choose_platform(deterministic=True, root=tmp_path)
    wanted = "--xla_gpu_autotune_level=2 --xla_gpu_deterministic_ops=true"
    assert os.environ["XLA_FLAGS"] == wanted


@pytest.mark.parametrize("given", [None, *SHARES])
def test_jax_takes_most_of_a_gpu_unless_told_how_much(fresh, monkeypatch, tmp_path, given):
    platform.choose_platform("cpu", root=tmp_path)
    assert not {*SHARES} & {*os.environ}
    if given:
        monkeypatch.setenv(given, "0.5")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    platform.choose_platform(root=tmp_path)
    found = {name: os.environ[name] for name in SHARES if name in os.environ}
    assert found == ({given: "0.5"} if given else {SHARES[0]: platform.MEMORY})


def test_jaxlib_knows_the_deterministic_flags():
    """An unknown flag in XLA_FLAGS ends the process, on any platform."""
    env = {**os.environ, "XLA_FLAGS": " ".join(platform.DETERMINISTIC), "JAX_PLATFORMS": "cpu"}
    code = "import jax; print(jax.devices()[0].platform)"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "cpu", done.stderr


def test_the_choice_is_what_jax_sees(tmp_path):
    code = (
        "from jaxlm.core.platform import choose_platform, use_compile_cache\n"
        "choose_platform('cpu'); folder = use_compile_cache()\n"
        "import sys; assert 'jax' not in sys.modules\n"
        "import jax; assert jax.config.jax_compilation_cache_dir == str(folder)\n"
        "print(jax.default_backend())"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    env |= {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "cpu", done.stderr


def test_the_compile_cache_is_private(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = platform.use_compile_cache()
    assert folder is not None and folder == platform.compile_cache()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    folder.chmod(0o777)  # others may have put programs there
    assert platform.use_compile_cache() is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_compile_cache_that_is_a_link_is_not_used(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = platform.compile_cache()
    folder.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert platform.use_compile_cache() is None


def test_a_platform_that_is_none_names_those_that_are(fresh, tmp_path):
    with pytest.raises(ConfigError, match="platform: 'cuda' is none; use auto, cpu, gpu or tpu"):
        platform.choose_platform("cuda", root=tmp_path)


@pytest.mark.parametrize(("said", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "0"}, False)])
def test_freed_memory_is_kept_unless_the_environment_says_how(said, kept):
    code = (
        "import resource; from jaxlm.core.platform import choose_platform\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "choose_platform('cpu'); bytearray(2**26); before = faults(); bytearray(2**26)\n"
        "print(faults() - before)"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | said
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (int(done.stdout) < 2000) == kept, done.stderr
