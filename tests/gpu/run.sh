#!/bin/sh
# Every check and benchmark that needs a GPU, on a machine with an NVIDIA driver. Takes a few
# minutes; docs/gpu.md says what it does and how to read it. Options: `./gpu-checks --help`.
#
#   ./run.sh                   all of it
#   ./run.sh --minutes 8       with random transfers for eight minutes
#   ./run.sh --only copies     one check
#
# Exit codes: 0 nothing failed, 1 a check failed, 2 wrong usage, 3 there is no CUDA driver or no
# such device, 4 the programs do not run on this machine.

here=$(cd "$(dirname "$0")" && pwd) || exit 4
results="$here/results-$(date -u +%Y%m%d-%H%M%S)"

if ! "$here/gpu-checks" --version >/dev/null 2>&1; then
    # Says what it lacks: another C library, or another processor.
    "$here/gpu-checks" --version
    echo "run.sh: the programs of this bundle do not run here: they are for $(cat "$here/built-for")" >&2
    exit 4
fi

# A pipe would hide the exit code; the results are in files of their own anyway.
exec "$here/gpu-checks" --results "$results" "$@"
