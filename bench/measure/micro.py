"""Every micro-benchmark, as the benchmark library reports it; no targets."""
from measure.common import NotMeasured, benchmarks, missing

ELSEWHERE = {"storage_clone_bench", "storage_settle_bench"}  # they take a while, and have rows of their own


def micro(run):
    for program in sorted((run.build / "bench").glob("*_bench")):
        if program.name in ELSEWHERE:
            continue
        try:
            results = benchmarks(run, program.name, "--benchmark_min_time=0.1")
        except NotMeasured as why:
            yield missing(program.name, None, "", why)
            continue
        for name, result in results.items():
            if result.get("error_occurred"):
                yield missing(f"{program.name} {name}", None, result.get("time_unit", ""), result.get("error_message", ""))
                continue
            yield {"row": f"{program.name} {name}", "value": round(result["cpu_time"], 1), "target": None, "unit": result["time_unit"],
                   "samples": 1, "spread": None, "at_most": True, "holds": None, "note": "",
                   "bytes_per_second": result.get("bytes_per_second"), "items_per_second": result.get("items_per_second")}
