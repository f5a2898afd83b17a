#!/usr/bin/env bash
# Install what testing needs and pass the tests, on each line of Python that this machine has:
# 3.11 (the last with jax 0.10) and the newest of 3.12 and later, where a few cases of each do.
#
#   bash tests/run.sh [--peers] [arguments of pytest]
#
# --peers adds the tests that compare with torch and transformers or need other programs (Ray, the
# compiler of TPUs), on Python 3.11, where a torch of version 2.13 for the CPU can be had.
# Environments are kept in .venv-test/; rerunning is quick.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

peers=no
if [[ "${1:-}" == --peers ]]; then
  peers=yes
  shift
fi

say() { printf '\n== %s\n' "$*"; }

# Print an interpreter of version 3.$1 that can make environments, if there is one.
python_of() {
  local candidate
  for candidate in "python3.$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$1."*/bin/python python3; do
    if "$candidate" -c "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, $1))" \
      >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
  done
}

# Make or renew .venv-test/$2 with the interpreter $1.
prepare() {
  local venv=".venv-test/$2" stamp
  stamp="$("$1" --version) $(cksum <pyproject.toml)"
  [[ -f "$venv/stamp" && "$(<"$venv/stamp")" == "$stamp" ]] && return
  say "Python $2: installing into $venv"
  rm -rf "$venv"
  "$1" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[test]'
  printf '%s' "$stamp" >"$venv/stamp"
}

# Run the tests of marker $2 in .venv-test/$1 with the other arguments, on two workers. Arguments
# may choose a file that has none of them (pytest's 5). Tiny models run a moment and compile for
# seconds, half of which is LLVM's optimization: only what is compared with peers has it.
pytest_in() {
  local version="$1" marker="$2" code=0
  shift 2
  if [[ "$marker" != peers ]]; then
    local -x XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  fi
  JAX_COMPILATION_CACHE_DIR="$PWD/.venv-test/compiled-$version" \
    ".venv-test/$version/bin/python" -m pytest -n 2 -m "$marker" "$@" || code=$?
  [[ $code == 0 || ($code == 5 && $# -gt 0) ]] || exit "$code"
}

# Install the Debian packages $3... for the test that $2, unless the program $1 is here; or say so.
have_or_reason() {
  local program="$1" what="$2"
  shift 2
  command -v "$program" >/dev/null 2>&1 && return
  if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null 2>&1; then
    say "installing $*, for what $what"
    { apt-get install -y -qq --no-install-recommends "$@" ||
      { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; }; } \
      >/dev/null 2>&1 && return
  fi
  say "no $program here and none could be installed: what $what is skipped"
}

# Can plain pip get a torch for the CPU? One that brings CUDA along is gigabytes that nothing needs.
torch_for_cpu() {
  ".venv-test/3.11/bin/python" -m pip install --quiet --disable-pip-version-check --dry-run \
    --report - 'torch==2.13.*' 2>/dev/null | ".venv-test/3.11/bin/python" -c '
import json, sys
names = [item["metadata"]["name"].lower() for item in json.load(sys.stdin)["install"]]
sys.exit(any(name.startswith(("nvidia", "cuda", "triton")) for name in names))' 2>/dev/null
}

versions=()
for minor in 11 "" ; do
  for each in ${minor:-14 13 12}; do
    python="$(python_of "$each")"
    if [[ -n "$python" ]]; then
      prepare "$python" "3.$each"
      versions+=("3.$each")
      break
    fi
  done
done
if [[ ${#versions[@]} == 0 ]]; then
  echo "tests/run.sh: no Python 3.11 or newer with venv here; install python3.12 and python3.12-venv" >&2
  exit 2
fi

say "ruff and pyright"
first=".venv-test/${versions[0]}/bin"
"$first/ruff" check .
"$first/ruff" format --check .
"$first/pyright" --pythonpath "$first/python"

for name in chromium-browser google-chrome chromium; do
  command -v "$name" >/dev/null 2>&1 && break
done
have_or_reason "$name" "opens a report" chromium
have_or_reason sbatch "runs launch files in a SLURM" slurm-wlm munge
have_or_reason shellcheck "reads scripts" shellcheck
for version in "${versions[@]}"; do
  say "Python $version: pytest"
  brief=--brief
  [[ "$version" == "${versions[0]}" ]] && brief=
  PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} $brief" pytest_in "$version" "not peers" "$@"
done

if [[ $peers == yes ]]; then
  if [[ " ${versions[*]} " != *" 3.11 "* ]]; then
    say "peers: skipped, no Python 3.11 here"
  elif ! torch_for_cpu; then
    say "peers: skipped, pip finds no torch 2.13 for the CPU alone"
  else
    say "Python 3.11: comparing with torch and transformers"
    .venv-test/3.11/bin/python -m pip install --quiet --disable-pip-version-check \
      'torch==2.13.*' 'transformers>=5' 'peft>=0.18' 'trl>=1.16'
    # datatrove with Ray, and the compiler of TPUs; what needs one that cannot be had is skipped.
    for extra in datatrove tpu; do
      .venv-test/3.11/bin/python -m pip install --quiet --disable-pip-version-check \
        --editable ".[$extra]" || say "no $extra here: what needs it is skipped"
    done
    pytest_in 3.11 peers "$@"
  fi
fi
say "all passed on Python ${versions[*]}"
