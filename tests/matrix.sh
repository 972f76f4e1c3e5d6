#!/bin/sh
# Run the fast tests with every Python from 3.8 to 3.19 found in PATH or in pyenv; free-threaded ones are left out,
# and so are the versions that WITHOUT names.
set -u
status=0 missing=
usable='import sys, sysconfig; sys.exit(bool(sysconfig.get_config_var("Py_GIL_DISABLED")))'
for minor in 8 9 10 11 12 13 14 15 16 17 18 19; do
    name=python3.$minor python=
    for candidate in "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$minor".*/bin/"$name" "$(command -v "$name")"; do
        if [ -x "$candidate" ] && "$candidate" -c "$usable" 2>/dev/null; then python=$candidate; break; fi
    done
    case " ${WITHOUT:-} " in *" 3.$minor "*) continue ;; esac
    if [ -z "$python" ]; then
        missing="$missing $name"
    elif log=$(FAST=1 "$python" tests/run.py 2>&1); then
        echo "$name: $(printf '%s\n' "$log" | grep '^Ran ')"
    else
        printf '%s\n' "$log" | tail -40
        echo "$name: FAILED"
        status=1
    fi
done
[ -z "$missing" ] || echo "not found, skipped:$missing"
exit $status
