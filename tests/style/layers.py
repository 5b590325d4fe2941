#!/usr/bin/env python3
"""The layering test: parses every #include and fails when a folder reaches one it must not know.

usage: layers.py ROOT
"""
import pathlib
import re
import sys

# What each folder may include, itself aside.
ALLOWED = {
    "base": set(),
    "wire": {"base"},
    "net": {"base", "wire"},
    "storage": {"base", "wire"},
    "nbd": {"base"},
    "server": {"base", "wire", "net", "storage", "nbd"},
    "agent": {"base", "wire", "net"},
    "cli": {"base"},
}
# Libraries that only the named places may include.
CONFINED = {
    r"^(liburing\.h|linux/io_uring\.h)$": ["storage/"],
    r"^rocksdb/": ["storage/"],
    r"^openssl/": ["base/crypto", "net/"],
    r"^asio": ["net/", "server/", "agent/", "bench/"],
    r"^bpf/": ["agent/"],
    r"^zstd\.h$": ["wire/"],
    r"^(httplib\.h|prometheus/)": ["server/", "cli/"],
}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def problems_of(root, path):
    name = path.relative_to(root).as_posix()
    folder = name.split("/")[0]
    for quote, target in INCLUDE.findall(path.read_text()):
        reached = target.split("/")[0]
        if quote == '"' and folder in ALLOWED and reached in ALLOWED and reached != folder:
            if reached not in ALLOWED[folder]:
                yield f"{name}: includes {target}, but {folder}/ must not know {reached}/"
        for pattern, places in CONFINED.items():
            if re.match(pattern, target) and folder in ALLOWED and not any(name.startswith(p) for p in places):
                yield f"{name}: includes {target}, which only {' and '.join(places)} may"


def main():
    root = pathlib.Path(sys.argv[1])
    files = [p for folder in ALLOWED for p in sorted((root / folder).glob("*")) if p.suffix in (".h", ".cc")]
    if not files:
        sys.exit(f"{root}: no sources found, nothing was checked")
    problems = [problem for path in files for problem in problems_of(root, path)]
    print("\n".join(problems) or f"{len(files)} files respect the layers")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
