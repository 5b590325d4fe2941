#!/usr/bin/env bash
# clang-format and clang-tidy over the sources: those changed since HEAD (default) or all.
# usage: tidy.sh BUILD_DIR [changed|all]
set -euo pipefail
build=$(realpath "$1")
which=${2:-changed}
if [ "$which" = all ]; then
  files=$(git ls-files '*.cc' '*.h')
else
  files=$( (git diff --name-only --diff-filter=d HEAD -- '*.cc' '*.h'; git ls-files --others --exclude-standard '*.cc' '*.h') | sort -u)
fi
[ -n "$files" ] || { echo "tidy: nothing to look at"; exit 0; }

echo "clang-format: $(wc -w <<<"$files") files"
# shellcheck disable=SC2086
clang-format-19 --dry-run -Werror $files

# A header that its own source includes first is read alone there.
headers=$(grep -E '^(base|wire|net|storage|nbd|server|agent|cli)/.*\.h$' <<<"$files" | while read -r header; do
  grep -s -m1 '^#include' "${header%.h}.cc" | grep -qF "\"$header\"" || echo "$header"
done || true)
if [ -n "$headers" ]; then
  echo "self-contained headers: $(wc -w <<<"$headers") files"
  xargs -r -n 1 -P "$(nproc)" g++ -std=gnu++23 -fsyntax-only -x c++ -w -I. -I"$build" -DASIO_STANDALONE \
    -DASIO_SEPARATE_COMPILATION -DSPDLOG_COMPILED_LIB -DSPDLOG_FMT_EXTERNAL <<<"$headers"
fi

# Tests and benchmarks are held to the compiler's warnings and the layout only: gtest's macros drown the rest.
sources=$(grep -E '^(base|wire|net|storage|nbd|server|agent|cli)/.*\.cc$' <<<"$files" || true)
[ -n "$sources" ] || exit 0
echo "clang-tidy: $(wc -w <<<"$sources") files"
# Read as they stand, without precompiled headers: what a source uses and does not include is an error here.
plain=$build/../tidy
cmake -S . -B "$plain" -G Ninja -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
# gcc's own flags in the compilation database are unknown to clang: silenced, everything else is an error.
xargs -r -n 2 -P "$(nproc)" clang-tidy-19 -p "$plain" --quiet \
  --extra-arg=-isystem --extra-arg="$build" --extra-arg=-Wno-unknown-warning-option <<<"$sources" 2> >(grep -vE '^[0-9]+ warnings? (generated|treated)|^Suppressed|^Use -header' >&2 || true)
echo "tidy: clean"
