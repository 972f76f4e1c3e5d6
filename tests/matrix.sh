#!/bin/sh
# Run the fast tests with every Python 3.8 to 3.13 found in PATH or in pyenv.
set -u
status=0
for minor in 8 9 10 11 12 13; do
    python=
    for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.$minor.*/bin/python3.$minor "$(command -v python3.$minor)"; do
        if [ -x "$candidate" ] && "$candidate" -c pass 2>/dev/null; then python=$candidate; break; fi
    done
    if [ -z "$python" ]; then
        echo "python3.$minor: not found, skipped"
        continue
    fi
    log=$(FAST=1 "$python" tests/run.py 2>&1)
    if [ $? -eq 0 ]; then
        echo "python3.$minor: $(printf '%s\n' "$log" | grep '^Ran ')"
    else
        printf '%s\n' "$log" | tail -40
        echo "python3.$minor: FAILED"
        status=1
    fi
done
exit $status
