#!/usr/bin/env bash
# Runs every fuzzer of a build: tests/fuzz/run.sh BUILD_DIR SECONDS
#
# Each starts from the seeds that make_seeds.py makes and from what earlier runs found (BUILD_DIR/corpus/<name>), and
# prints one line with its executions and coverage. A crash, a leak, a hang or a build without fuzzers is a failure; the
# input that did it stays in BUILD_DIR/crashes/<name>-*, to be run alone as its fuzzer's only argument.
set -euo pipefail
build=${1:?usage: run.sh BUILD_DIR SECONDS}
seconds=${2:-30}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
shopt -s nullglob
fuzzers=("$build"/tests/*_fuzz)
if [ ${#fuzzers[@]} -eq 0 ]; then
  echo "fuzz: no fuzzer in $build/tests; build it with ./dev build asan fuzzers" >&2
  exit 1
fi
mkdir -p "$build/crashes"
python3 "$here/make_seeds.py" "$build/seeds"
failed=0
for fuzzer in "${fuzzers[@]}"; do
  [ -x "$fuzzer" ] || continue
  name=$(basename "$fuzzer")
  corpus=$build/corpus/$name
  log=$build/crashes/$name.log
  mkdir -p "$corpus"
  seeds=()
  [ ! -d "$build/seeds/$name" ] || seeds=("$build/seeds/$name")
  if "$fuzzer" -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
      -artifact_prefix="$build/crashes/$name-" "$corpus" "${seeds[@]}" >"$log" 2>&1; then
    verdict=ok
  else
    verdict=FAILED
    failed=1
  fi
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
  coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
  printf '%-24s %-6s %12s executions, coverage %s\n' "$name" "$verdict" "${executions:-?}" "${coverage:-?}"
  if [ "$verdict" = FAILED ]; then tail -40 "$log" >&2; fi
done
exit "$failed"
