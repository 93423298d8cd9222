#!/usr/bin/env bash
# Starts vLLM in the background and the page (app.py), and keeps both running.
#
#   ./start.sh [--host H] [--port P] [--model-url URL] [--share]
#
# Everything else is an environment variable: see the table in README.md.
set -euo pipefail

# -- 1. Folders ----------------------------------------------------------------------------
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
source "$ROOT/vllm_space/environment.sh"
# For the engine's log and status and visitors' files. See vllm_space/run_dir.py.
RUN_DIR=$(mktemp -d "${TMPDIR:-/tmp}/vllm-space.XXXXXX") ||
  die "Cannot create a folder: set TMPDIR to a writable one."
touch "$RUN_DIR/started" || true

# -- 2. However this script ends, it ends everything it started ------------------------------
set -m # every background job gets its own process group, which one signal can end
clean_up() {
  local code=$? job
  trap '' TERM INT HUP
  exec 2>/dev/null # otherwise bash reports every job that is killed here
  for job in $(jobs -p); do kill -TERM -- "-$job" 2>/dev/null || true; done
  for _ in {1..80}; do # the engine stops its workers within 5 s
    [ -n "$(jobs -pr)" ] || break
    sleep 0.1
  done
  for job in $(jobs -pr); do kill -KILL -- "-$job" 2>/dev/null || true; done
  # vLLM has its own process group. It is left over if its supervisor was killed.
  [ ! -s "$RUN_DIR/engine.pid" ] || kill -KILL -- "-$(cat "$RUN_DIR/engine.pid")" || true
  rm -rf "$RUN_DIR"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 143' TERM
trap 'exit 130' INT HUP

# -- 3. A Python environment: the active one if it has the requirements, else our own --------
READER=${PYTHON:-python3} # of the variables, in the environment and in .env
"$READER" -c 'from __future__ import annotations' 2>/dev/null || # Python 3.7 is enough
  { find_base_python && READER=$BASE_PYTHON; }
setting() { # NAME...: the values of these variables. Fails if .env cannot be read.
  "$READER" "$ROOT/vllm_space/dotenv.py" "$ROOT/.env" "$@"
}
SERVERS=$(setting MODEL_URL MODELS)
DEVICE=$(setting ENGINE_DEVICE)
engine_elsewhere() { # a running server is used, so vLLM is not needed here
  # Not blank, and not an empty list of servers.
  [[ $SERVERS == *[[:alnum:]]* || " $* " == *" --model-url"* ]]
}
engine_on_gpu() {
  "$READER" "$ROOT/vllm_space/hardware.py" "${DEVICE:-auto}"
}
if engine_elsewhere "$@"; then
  requirements_without_vllm >"$RUN_DIR/requirements-page.txt"
  choose_environment page "$RUN_DIR/requirements-page.txt"
elif engine_on_gpu; then
  choose_environment gpu "$ROOT/requirements.txt"
else
  choose_environment cpu "$ROOT/requirements-cpu.txt"
fi

# -- 4. Check the settings and the machine, then install -------------------------------------
"$PYTHON" -m vllm_space.engine.preflight "$RUN_DIR" "$@"
[ -s "$RUN_DIR/plan" ] || exit 0 # --help
read -r plan engine_url <"$RUN_DIR/plan"
fill_environment

# -- 5. vLLM, in the background --------------------------------------------------------------
if [ "$plan" = boot ]; then
  # A random key for each start: without it, any user of this machine could use the engine.
  MODEL_API_KEY=$(head -c 32 /dev/urandom | base64 | tr -dc 'A-Za-z0-9')
  export MODEL_API_KEY ENGINE_RUN_DIR="$RUN_DIR"
  "$PYTHON" -m vllm_space.engine </dev/null &
  export MODEL_URL="$engine_url"
fi

# -- 6. The page, which loads meanwhile and opens its port when vLLM is ready ----------------
export GRADIO_TEMP_DIR="${GRADIO_TEMP_DIR:-$RUN_DIR/uploads}" # deleted with RUN_DIR
# Without a token for the Hub, also without that of `hf auth login`.
env -u HF_TOKEN -u HUGGING_FACE_HUB_TOKEN HF_TOKEN_PATH=/dev/null PYTHONUNBUFFERED=1 \
  "$PYTHON" "$ROOT/app.py" "$@" </dev/null &

# -- 7. When either of them ends, exit with its code -----------------------------------------
code=0
wait -n || code=$?
exit "$code"
