"""What the clients of benchmarks write down of their runs, whoever wrote it."""

from simbatch.sim.workload.bench.read import RESULT_TOOLS, read_results
from simbatch.sim.workload.bench.run import BenchRun, BenchTotals, Load

__all__ = ["RESULT_TOOLS", "BenchRun", "BenchTotals", "Load", "read_results"]
