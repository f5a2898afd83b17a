#!/usr/bin/env bash
# From a fresh checkout to a language model that writes, on any machine with Python 3.11 or newer:
# makes .venv, installs jaxlm, trains a small decoder on the source of Python's own standard library
# and prints what it writes; then adapters beside it learn to answer, and the same prompt is shown
# before and after.
#
#   bash launch/quickstart.sh [key=value ...]
#
# Run again, it continues, or writes once more when the training is done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.14 python3.11 \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[1-9].*/bin/python python; do
    if is_new_enough "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  {
    echo "quickstart: jaxlm needs Python 3.11 or newer; python3 here is $(python3 --version 2>&1 || true)."
    echo "Install one, for example: sudo apt-get install python3.12 python3.12-venv  (Debian, Ubuntu)"
    echo "                          brew install python@3.12                          (macOS)"
  } >&2
  exit 2
}

if ! { [[ -x .venv/bin/python ]] && is_new_enough .venv/bin/python; }; then
  python="$(find_python)"
  echo "quickstart: making .venv with $("$python" --version)"
  rm -rf .venv
  if ! "$python" -m venv .venv; then
    rm -rf .venv
    echo "quickstart: that Python cannot make environments; install its venv package," \
      "for example: sudo apt-get install python3-venv" >&2
    exit 2
  fi
fi

stamp="$(cksum <pyproject.toml)"
if [[ ! -f .venv/jaxlm-stamp || "$(<.venv/jaxlm-stamp)" != "$stamp" ]]; then
  echo "quickstart: installing jaxlm and what it needs into .venv (about 1 GB, a few minutes)"
  if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .; then
    echo "quickstart: the installation failed; mend what pip says above and run this again" >&2
    exit 1
  fi
  printf '%s' "$stamp" >.venv/jaxlm-stamp
fi

run=runs/quickstart
both=()
for word in "$@"; do
  case "$word" in
    name=*) run="runs/${word#*=}" ;;
    run_dir=*) run="${word#*=}" ;;
    batch=* | length=* | platform=* | mesh.*) both+=("$word") ;;
  esac
done

train() {
  local code=0
  .venv/bin/jaxlm train "$@" || code=$?
  if [[ $code != 0 ]]; then
    [[ $code == 75 ]] && echo "quickstart: stopped and saved; run this again to continue" >&2
    exit "$code"
  fi
}

train quickstart "$@"

echo
echo "A sample:"
.venv/bin/jaxlm generate "$run" --prompt "def main(" \
  --max-tokens 64 --temperature 0.8 --top-p 0.95 --seed 1

echo
echo "Now adapters beside it learn to begin a function from what it is for (docs/finetuning.md):"
train quickstart_lora init="$run" run_dir="$run-lora" ${both[@]+"${both[@]}"}
prompt=$'Return the absolute path of a file.\n'
for model in "$run" "$run-lora"; do
  echo
  echo "$model, asked: Return the absolute path of a file."
  .venv/bin/jaxlm generate "$model" --prompt "$prompt" --max-tokens 24
done

echo
echo "The runs lie in $run and $run-lora: open report.html in them, or write more with"
echo "  .venv/bin/jaxlm generate $run --prompt \"class \" --temperature 0.8"
