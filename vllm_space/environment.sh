# Sourced by start.sh and tests/run: a Python environment with what is needed, made where there is none.
#
#   choose_environment NAME REQUIREMENTS...   sets PYTHON, the interpreter to use
#   fill_environment                          installs what it still lacks
#
# An active environment that has all that the REQUIREMENTS name is used as it is, and never changed. Otherwise
# one is made in the user's cache folder (never in the repository: an upload must not carry it), under a name
# that holds the hash of the requirements. Both steps can be interrupted and run again.

WHAT_IS_MISSING=$(dirname "${BASH_SOURCE[0]}")/requirements.py
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

# Run a long command so that a signal to this script is acted on at once, not when the command ends.
run() {
  "$@" </dev/null &
  wait $!
}

die() {
  echo "ERROR: $*" >&2
  exit 1
}

has_module() { # PYTHON MODULE: is it installed?
  "$1" -c 'import sys; from importlib.util import find_spec; sys.exit(not find_spec(sys.argv[1]))' "$2" >/dev/null 2>&1
}

supported_python() {
  "$1" -c 'import sys, ensurepip, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' >/dev/null 2>&1
}

find_environment() { # NAME REQUIREMENTS...: is there one that is ready? Sets PYTHON if there is
  local candidate
  REQUIREMENTS=("${@:2}")
  MISSING=""
  for candidate in "${PYTHON:-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" python3 python; do
    if [ -n "$candidate" ] && "$candidate" "$WHAT_IS_MISSING" "${REQUIREMENTS[@]}" >/dev/null 2>&1; then
      PYTHON=$candidate
      return
    fi
  done
  find_base
  ENVIRONMENT=${XDG_CACHE_HOME:-$HOME/.cache}/vllm-space/$1-$({ "$BASE" --version && cat "${REQUIREMENTS[@]}"; } |
    sha256sum | cut -c1-12)
  [ -e "$ENVIRONMENT/.complete" ] || return 1
  PYTHON=$ENVIRONMENT/bin/python
}

find_base() { # the Python that environments are made with
  local candidate
  BASE=""
  for candidate in python3 python3.12 python3.13 python3.11 python3.10; do
    if supported_python "$candidate"; then BASE=$candidate && return; fi
  done
  die "Python 3.10 to 3.13 with venv is needed. On Debian or Ubuntu: apt-get install python3-venv"
}

choose_environment() {
  ! find_environment "$@" || return 0
  [ -z "${SPACE_ID:-}" ] ||
    die "This Space lacks Python packages that ${REQUIREMENTS[*]##*/} names ($("${PYTHON:-python3}" "$WHAT_IS_MISSING" \
      "${REQUIREMENTS[@]}" 2>&1)): put them into requirements.txt and rebuild it."
  PYTHON=$ENVIRONMENT/bin/python
  MISSING=1

  mkdir -p "$ENVIRONMENT" || die "$ENVIRONMENT cannot be made: set XDG_CACHE_HOME to a folder that can be written to."
  exec 9>"$ENVIRONMENT.lock"
  if command -v flock >/dev/null && ! flock -n 9; then
    echo "Another start is installing the same packages; waiting for it."
    run flock 9
  fi
  if ! has_module "$PYTHON" pip; then
    echo "Making a Python environment in $ENVIRONMENT"
    run "$BASE" -m venv --clear "$ENVIRONMENT"
  fi
  # What reads the settings comes first: a bad value should be told before a long download, not after it.
  has_module "$PYTHON" pydantic_settings || run "$PYTHON" -m pip install -qq --disable-pip-version-check pydantic-settings
}

install_requirements() {
  "$PYTHON" -m pip install --disable-pip-version-check --progress-bar off "${REQUIREMENTS[@]/#/-r}" |
    sed -u -nE 's/^(Collecting|Downloading|Using cached) ([^ ]+).*/    \2/p; /^(ERROR|Installing|Successfully)/p' | cut -c1-160
}

fill_environment() {
  [ -n "$MISSING" ] || return 0
  if [ ! -e "$ENVIRONMENT/.complete" ]; then # not made by another start in the meantime
    echo "Installing ${REQUIREMENTS[*]##*/} (a few minutes, once)"
    # An index that cannot be reached would be tried again and again for every package.
    "$PYTHON" -c "import urllib.request as u; u.urlopen('$TORCH_CPU_INDEX/torch/', timeout=5)" 2>/dev/null || export PIP_RETRIES=0
    run install_requirements || die "The packages could not be installed; the lines above say why."
    # A torchvision built for another torch takes vLLM down with it; text models need none of the three.
    "$PYTHON" -c 'import torchvision' >/dev/null 2>&1 ||
      run "$PYTHON" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    touch "$ENVIRONMENT/.complete"
  fi
  exec 9>&- # the lock
}
