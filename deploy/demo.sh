#!/usr/bin/env bash
# The main job, end to end, on this machine: see deploy/demo.py, or run it with --help.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PATH="$PATH:/usr/sbin:/sbin"  # mke2fs, debugfs and e2fsck, for users without them in the path
exec python3 "$here/demo.py" "$@"
