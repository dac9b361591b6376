# shellcheck shell=bash
# What every launcher reads and does alike; sourced by the scripts beside it with their own arguments.
#
# Sets root (this checkout), config (CONFIG, relative to root where it lies inside; ":argument" kept), and leaves the
# overrides in "$@". give COMMAND... prints a command and runs it; with DRY_RUN=1 it only prints. worst CODES... prints
# the exit code that says most of several processes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ $# = 0 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0" >&2 # the comment at the head of the launcher is its manual
    exit 2
fi

config=$1
shift
file=${config%%:*}
case $file in
/*) found=$file ;;
*) if [ -f "$PWD/$file" ]; then found=$PWD/$file; else found=$root/$file; fi ;;
esac
if [ ! -f "$found" ]; then
    echo "$(basename "$0"): no config file $file, neither in $PWD nor in $root; the first argument is the config" >&2
    exit 2
fi
found=$(cd "$(dirname "$found")" && pwd)/$(basename "$found")
config=${found#"$root"/}${config#"$file"}

is_dry() { [ "${DRY_RUN:-}" = 1 ]; }

give() {
    { printf '+'; printf ' %q' "$@"; echo; } >&"${shown:-1}"
    is_dry || "$@"
}

# The config travels with the checkout to machines that do not share its file system.
config_travels() {
    case $config in
    /*)
        echo "$(basename "$0"): ${config%%:*} lies outside $root, which is all that is copied; put it into $root/configs" >&2
        exit 2
        ;;
    esac
}

# 0 done, 143 stopped with everything saved, 3 a gate stayed closed, 2 bad config, 1 failed; above all, killed.
worst() {
    local code found=0
    for code in "$@"; do
        if [ "$(rank "$code")" -gt "$(rank "$found")" ]; then found=$code; fi
    done
    echo "$found"
}

rank() {
    case $1 in 0) echo 0 ;; 143) echo 1 ;; 3) echo 2 ;; 2) echo 3 ;; 1) echo 4 ;; *) echo 5 ;; esac
}
