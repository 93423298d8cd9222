#!/usr/bin/env bash
# Boots the vLLM api_server in the background, waits until it is ready, runs the page (app.py), supervises both.
#
#   ./start.sh [--host H] [--port P] [--model-url URL] [--share]
#
# Everything else is an environment variable: see the table in README.md.
set -euo pipefail

# -- 1. Where things are ---------------------------------------------------------------------------------------
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
source "$ROOT/vllm_space/environment.sh"
RUN_DIR=$(mktemp -d "${TMPDIR:-/tmp}/vllm-space.XXXXXX") || # the engine's log and status, for as long as it runs
  die "Set TMPDIR to a folder that can be written to."

began() { # a phase of the start; the page prints how long each took
  local now=${EPOCHREALTIME:-$(date +%s)}
  echo "${now/,/.} $*" >>"$RUN_DIR/phases" || true
}

# -- 2. Whatever ends this script ends everything it started -----------------------------------------------------
set -m # every background job is a process group of its own, which one signal ends whole
clean_up() {
  local code=$? job
  trap '' TERM INT HUP
  exec 2>/dev/null # bash itself would list the jobs that it ends here
  for job in $(jobs -p); do kill -TERM -- "-$job" 2>/dev/null || true; done
  for _ in {1..80}; do # the engine stops its workers within 5 s
    [ -n "$(jobs -pr)" ] || break
    sleep 0.1
  done
  for job in $(jobs -pr); do kill -KILL -- "-$job" 2>/dev/null || true; done
  # vLLM's own group, should the process that watches over it have been killed
  [ ! -s "$RUN_DIR/engine.pid" ] || kill -KILL -- "-$(cat "$RUN_DIR/engine.pid")" || true
  rm -rf "$RUN_DIR"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 143' TERM
trap 'exit 130' INT HUP

# -- 3. A Python environment: the active one if it has what is needed, else one of our own -----------------------
setting() { # the value of a variable, from the environment or from .env
  local line="${!1:-}"
  [ -n "$line" ] || line=$(sed -nE "s/^(export )?$1=['\"]?([^'\"]*).*/\2/p" "$ROOT/.env" 2>/dev/null | tail -n 1)
  echo "$line"
}
engine_elsewhere() { # is a running server to be used, so that no vLLM is needed here?
  [ -n "$(setting MODEL_URL)$(setting MODELS)" ] || [[ " $* " == *" --model-url"* ]]
}
engine_on_gpu() {
  local device
  device=$(setting ENGINE_DEVICE)
  "${PYTHON:-python3}" "$ROOT/vllm_space/hardware.py" "${device:-auto}"
}
began "finding a Python environment"
if engine_elsewhere "$@"; then
  grep -v '^vllm' "$ROOT/requirements.txt" >"$RUN_DIR/requirements-page.txt"
  choose_environment page "$RUN_DIR/requirements-page.txt"
elif engine_on_gpu; then
  choose_environment gpu "$ROOT/requirements.txt"
else
  choose_environment cpu "$ROOT/requirements-cpu.txt"
fi

# -- 4. Are the settings right, and can this machine do it? ------------------------------------------------------
began "checking the settings"
"$PYTHON" -m vllm_space.engine.preflight "$RUN_DIR" "$@"
[ -s "$RUN_DIR/plan" ] || exit 0 # --help
read -r plan engine_url <"$RUN_DIR/plan"
began "installing packages"
fill_environment

# -- 5. vLLM in the background -----------------------------------------------------------------------------------
if [ "$plan" = boot ]; then
  began "checking the model"
  # A key made for this start keeps everyone else on this machine away from the engine.
  MODEL_API_KEY=$(head -c 32 /dev/urandom | base64 | tr -dc 'A-Za-z0-9')
  export MODEL_API_KEY ENGINE_RUN_DIR="$RUN_DIR"
  "$PYTHON" -m vllm_space.engine </dev/null &
  export MODEL_URL="$engine_url"
fi

# -- 6. The page, which gets ready meanwhile and opens its port when vLLM is ready --------------------------------
env -u HF_TOKEN PYTHONUNBUFFERED=1 "$PYTHON" "$ROOT/app.py" "$@" </dev/null &

# -- 7. Both run until one of them ends: that one's exit code is ours --------------------------------------------
code=0
wait -n || code=$?
exit "$code"
