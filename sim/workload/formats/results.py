"""Results of benchmarks' clients (`sim/workload/bench`), which are read whole; none is written."""

from simbatch.sim.workload.formats import Columns, Format

_COLUMNS = Columns("start_times", "input_lens", "output_lens")
_TOOLS = ("vllm_bench", "guidellm", "aiperf", "inference_perf")
FORMATS = [Format(tool, _COLUMNS, "s" if tool == "vllm_bench" else None, written_as="") for tool in _TOOLS]
