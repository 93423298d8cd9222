# Sourced by start.sh and tests/run: finds or creates a Python environment with the requirements.
#
#   choose_environment NAME REQUIREMENTS...   sets PYTHON, the interpreter to use
#   fill_environment                          installs what it lacks
#   requirements_without_vllm                 prints requirements.txt for a page on its own
#
# An active environment that meets the REQUIREMENTS is used and never changed. Otherwise one is
# created in the user's cache folder (in the repository, it would be uploaded with it). Its name
# holds the hash of the requirements. Both steps may be interrupted and run again.

HERE=$(dirname "${BASH_SOURCE[0]}")
FIND_MISSING=$HERE/requirements.py
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

# Run a long command in the background: bash handles a signal only between foreground commands.
run() {
  "$@" </dev/null &
  wait $!
}

die() {
  echo "ERROR: $*" >&2
  exit 1
}

requirements_without_vllm() {
  grep -v '^vllm' "$HERE/../requirements.txt"
}

has_module() { # PYTHON MODULE
  "$1" -c 'import sys; from importlib.util import find_spec; sys.exit(not find_spec(sys.argv[1]))' \
    "$2" >/dev/null 2>&1
}

is_supported() { # PYTHON
  "$1" -c 'import sys, ensurepip, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
    >/dev/null 2>&1
}

find_environment() { # NAME REQUIREMENTS...: sets PYTHON if an environment is ready, fails otherwise
  local candidate
  REQUIREMENTS=("${@:2}")
  INCOMPLETE=""
  for candidate in "${PYTHON:-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" python3 python; do
    [ -n "$candidate" ] || continue
    if "$candidate" "$FIND_MISSING" "${REQUIREMENTS[@]}" >/dev/null 2>&1; then
      PYTHON=$candidate
      return
    fi
  done
  find_base_python
  local hash
  hash=$({ "$BASE_PYTHON" --version && cat "${REQUIREMENTS[@]}"; } | sha256sum | cut -c1-12)
  ENVIRONMENT=${XDG_CACHE_HOME:-$HOME/.cache}/vllm-space/$1-$hash
  [ -e "$ENVIRONMENT/.complete" ] || return 1
  PYTHON=$ENVIRONMENT/bin/python
}

find_base_python() { # sets BASE_PYTHON, which creates environments
  for BASE_PYTHON in python3 python3.12 python3.13 python3.11 python3.10; do
    if is_supported "$BASE_PYTHON"; then return; fi
  done
  die "Python 3.10 to 3.13 with venv is needed. On Debian or Ubuntu: apt-get install python3-venv"
}

choose_environment() {
  ! find_environment "$@" || return 0
  [ -z "${SPACE_ID:-}" ] ||
    die "Not installed, although this Space needs them (${REQUIREMENTS[*]##*/}):" \
      "$("${PYTHON:-python3}" "$FIND_MISSING" "${REQUIREMENTS[@]}" 2>&1)." \
      "List them in requirements.txt and rebuild the Space."
  PYTHON=$ENVIRONMENT/bin/python
  INCOMPLETE=1

  mkdir -p "$ENVIRONMENT" ||
    die "Cannot create $ENVIRONMENT: set XDG_CACHE_HOME to a writable folder."
  exec 9>"$ENVIRONMENT.lock"
  if command -v flock >/dev/null && ! flock -n 9; then
    echo "Another start is installing the same packages; waiting for it."
    run flock 9
  fi
  if ! has_module "$PYTHON" pip; then
    echo "Creating a Python environment in $ENVIRONMENT"
    run "$BASE_PYTHON" -m venv --clear "$ENVIRONMENT"
  fi
  # The settings can be read with this alone: report a bad value before a long download.
  has_module "$PYTHON" pydantic ||
    run "$PYTHON" -m pip install -qq --disable-pip-version-check pydantic
}

install_requirements() {
  local progress='s/^(Collecting|Downloading|Using cached) ([^ ]+).*/    \2/p'
  "$PYTHON" -m pip install --disable-pip-version-check --progress-bar off \
    "${REQUIREMENTS[@]/#/-r}" |
    sed -u -nE "$progress; /^(ERROR|Installing|Successfully)/p" | cut -c1-160
}

can_reach() { # URL
  "$PYTHON" -c "import urllib.request as u; u.urlopen('$1', timeout=5)" 2>/dev/null
}

fill_environment() {
  [ -n "$INCOMPLETE" ] || return 0
  if [ ! -e "$ENVIRONMENT/.complete" ]; then # another start may have completed it meanwhile
    echo "Installing ${REQUIREMENTS[*]##*/} (a few minutes, once)"
    # pip retries an unreachable index several times for every package.
    can_reach "$TORCH_CPU_INDEX/torch/" || export PIP_RETRIES=0
    run install_requirements || die "The packages could not be installed: see the lines above."
    # A torchvision for another torch crashes vLLM, and text models need none of the three.
    "$PYTHON" -c 'import torchvision' >/dev/null 2>&1 ||
      run "$PYTHON" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    touch "$ENVIRONMENT/.complete"
  fi
  exec 9>&- # release the lock
}
