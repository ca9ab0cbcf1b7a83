"""The GPUs that have a short name: datasheets, what CUDA reports of their memory, and one reading of their names.

Peak rates are dense. Memory is what CUDA reports, less than what is on the box and in nvidia-smi: from a log or an
error message where `memory_from` says so, else what nvidia-smi shows less the 0.46 GiB that the driver keeps of the
cards of which both figures are known. ROCm reports all of an MI300's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from simbatch.sim.errors import Problem, UserError

GIB = 2**30
NVLINK_BYTES_PER_S = 64e9  # PCIe 5.0 has no more; a faster link is NVLink's or AMD's
SMI, TORCH, LOG = "nvidia-smi less 0.46 GiB", "PyTorch's error messages", "a start-up log of vLLM"


@dataclass(frozen=True)
class Gpu:
    """One GPU: memory in bytes, rates per second; `flops` by the type that is multiplied (bf16, fp8, int8, fp4).

    `bf16` is fp16's rate on a GPU that has no bf16 (T4, V100).
    """

    short: str
    name: str
    total_bytes: int
    bandwidth_bytes_per_s: float
    flops_per_s: dict[str, float]
    link_bytes_per_s: float  # to another GPU of the node, one direction
    memory_from: str = SMI
    sheet: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def default_max_num_seqs(self) -> int:
        """VLLM 0.32's default."""
        return default_batch_limits(self.short, self.total_bytes)[0]

    @property
    def default_max_num_batched_tokens(self) -> int:
        """VLLM 0.32's default."""
        return default_batch_limits(self.short, self.total_bytes)[1]

    @property
    def has_fast_link(self) -> bool:
        """Whether GPUs of one node are linked by more than PCIe."""
        return self.link_bytes_per_s > NVLINK_BYTES_PER_S

    def peak_flops_per_s(self, dtype: str) -> float:
        """The dense peak for a type; one that the GPU cannot multiply is computed in bf16."""
        return self.flops_per_s.get(dtype, self.flops_per_s["bf16"])


AIC = "aiconfigurator's datasheets (github.com/ai-dynamo/aiconfigurator, Apache-2.0)"
AMPERE, ADA = "NVIDIA's GA102 whitepaper, fp32 accumulation", "NVIDIA's Ada whitepaper, fp32 accumulation"
AMD, SHEET, BLACKWELL = "AMD's datasheet", "NVIDIA's datasheet", "NVIDIA's RTX Blackwell whitepaper, fp32 accumulation"


def _gpu(
    short: str, name: str, memory_gib: float, gb_per_s: float, tflops: Mapping[str, float], link: float, **more: Any
) -> Gpu:
    """`memory_gib` in GiB, `gb_per_s` and `link` in GB/s, `tflops` in 10^12/s."""
    flops = {dtype: rate * 1e12 for dtype, rate in tflops.items()}
    total = more.pop("total_bytes", int(memory_gib * GIB))
    more["aliases"] = tuple(more.get("aliases", "").split())
    return Gpu(short, name, total, gb_per_s * 1e9, flops, link * 1e9, **more)


_FLOPS_6000 = {"bf16": 467.8, "fp8": 935.6, "int8": 935.6, "fp4": 1871.2}
_FLOPS_H100 = {"bf16": 989, "fp8": 1978, "int8": 1978}
_FLOPS_MI300 = {"bf16": 1307.4, "fp8": 2614.9, "int8": 2614.9}
GPUS = {
    gpu.short: gpu
    for gpu in (
        _gpu("rtx3090", "NVIDIA GeForce RTX 3090", 23.58, 936, {"bf16": 71, "int8": 284}, 32,
             memory_from="vLLM issue 10517", sheet=AMPERE),
        _gpu("rtx4080", "NVIDIA GeForce RTX 4080", 15.53, 716.8, {"bf16": 97.5, "fp8": 194.9, "int8": 389.9}, 32,
             sheet=ADA),
        _gpu("rtx4090", "NVIDIA GeForce RTX 4090", 0, 1008, {"bf16": 165.2, "fp8": 330.3, "int8": 660.6}, 32,
             total_bytes=25_250_627_584, memory_from="a recorded run of LLMServingSim's (MIT)", sheet=ADA),
        _gpu("rtx5090", "NVIDIA GeForce RTX 5090", 31.36, 1792,
             {"bf16": 209.5, "fp8": 419, "int8": 838, "fp4": 1676}, 64, memory_from=TORCH, sheet=BLACKWELL),
        _gpu("rtxpro6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", 94.97, 1792, _FLOPS_6000, 64,
             memory_from=TORCH, sheet=AIC,
             aliases="pro6000 rtxpro6000blackwell rtxpro6000blackwellworkstation rtxpro6000max-q rtx6000pro "
             "rtxpro6000blackwellmax-q"),
        _gpu("rtxpro4500", "NVIDIA RTX PRO 4500 Blackwell", 31.38, 896,
             {"bf16": 210.9, "fp8": 421.8, "int8": 421.8, "fp4": 843.5}, 64,
             memory_from=LOG, sheet=SHEET, aliases="pro4500"),
        _gpu("a4000", "NVIDIA RTX A4000", 15.53, 448, {"bf16": 76.7, "int8": 153.4}, 32, sheet=SHEET),
        _gpu("a4500", "NVIDIA RTX A4500", 19.53, 640, {"bf16": 94.6, "int8": 189.2}, 32, sheet=SHEET),
        _gpu("a5000", "NVIDIA RTX A5000", 23.53, 768, {"bf16": 111.1, "int8": 222.2}, 32, sheet=SHEET),
        _gpu("a6000", "NVIDIA RTX A6000", 47.53, 768, {"bf16": 154.8, "int8": 309.7}, 32, sheet=SHEET),
        _gpu("rtx6000ada", "NVIDIA RTX 6000 Ada Generation", 47.53, 960,
             {"bf16": 364.2, "fp8": 728.5, "int8": 728.5}, 32, sheet=SHEET, aliases="6000ada"),
        _gpu("t4", "NVIDIA Tesla T4", 14.56, 320, {"bf16": 65, "int8": 130}, 16,
             memory_from=LOG, sheet=SHEET),
        _gpu("v100", "NVIDIA Tesla V100 16 GB", 15.54, 900, {"bf16": 125}, 150, sheet=SHEET,
             aliases="v100-16 v100-sxm2 v100-sxm2-16gb v100-pcie-16gb"),
        _gpu("v100-32", "NVIDIA Tesla V100 32 GB", 31.75, 900, {"bf16": 125}, 150, sheet=SHEET,
             memory_from=TORCH, aliases="v100-32gb v100-sxm2-32gb v100-pcie-32gb"),
        _gpu("a10", "NVIDIA A10", 22.18, 600, {"bf16": 125, "int8": 250}, 32,
             memory_from="OpenBMB/MiniCPM-V issue 640", sheet=SHEET),
        _gpu("a10g", "NVIDIA A10G", 22.07, 600, {"bf16": 70, "int8": 140}, 32,
             memory_from=LOG, sheet=SHEET),
        _gpu("a30", "NVIDIA A30", 23.50, 933, {"bf16": 165, "int8": 330}, 32, memory_from="vLLM issue 2554", sheet=AIC),
        _gpu("a40", "NVIDIA A40", 44.53, 696, {"bf16": 149.7, "int8": 299.3}, 32, sheet=SHEET),
        _gpu("a100", "NVIDIA A100", 79.15, 2039, {"bf16": 312, "int8": 624}, 300,
             memory_from=LOG, sheet=AIC,
             aliases="a100-80 a100-80gb a100-sxm a100-sxm4 a100-sxm-80gb a100-sxm4-80gb"),
        _gpu("a100-pcie", "NVIDIA A100 80GB PCIe", 79.15, 1935, {"bf16": 312, "int8": 624}, 32,
             memory_from="as the SXM board", sheet=AIC, aliases="a100-pcie-80 a100-pcie-80gb a100-80-pcie"),
        _gpu("a100-40", "NVIDIA A100-SXM4-40GB", 39.39, 1555, {"bf16": 312, "int8": 624}, 300, sheet=SHEET,
             memory_from=TORCH, aliases="a100-40gb a100-sxm-40gb"),
        _gpu("a100-pcie-40", "NVIDIA A100-PCIE-40GB", 39.39, 1555, {"bf16": 312, "int8": 624}, 32, sheet=SHEET,
             memory_from="as the SXM board", aliases="a100-40-pcie a100-40gb-pcie"),
        _gpu("l4", "NVIDIA L4", 22.03, 300, {"bf16": 121, "fp8": 242, "int8": 242}, 32, sheet=AIC),
        _gpu("l20", "NVIDIA L20", 44.53, 864, {"bf16": 119.5, "fp8": 239, "int8": 239}, 32, sheet=SHEET),
        _gpu("l40", "NVIDIA L40", 44.53, 864, {"bf16": 181, "fp8": 362, "int8": 362}, 32, sheet=SHEET),
        _gpu("l40s", "NVIDIA L40S", 44.53, 864, {"bf16": 362, "fp8": 733, "int8": 733}, 32,
             memory_from="vLLM issue 15598", sheet=AIC),
        _gpu("h100", "NVIDIA H100", 79.11, 3350, _FLOPS_H100, 450, memory_from="vLLM issue 27508", sheet=AIC,
             aliases="h100-80 h100-80gb h100-80gb-hbm3 h100-sxm h100-sxm5 h100-sxm-80gb"),
        _gpu("h100-pcie", "NVIDIA H100 PCIe", 79.11, 2000, {"bf16": 756.5, "fp8": 1513, "int8": 1513}, 64,
             memory_from="as the SXM board", sheet=AIC, aliases="h100-pcie-80gb h100-80gb-pcie"),
        _gpu("h100-nvl", "NVIDIA H100 NVL", 93.00, 3938, {"bf16": 835.5, "fp8": 1671, "int8": 1671}, 300,
             memory_from="ali-vilab/VACE issue 56", sheet=SHEET, aliases="h100-94 h100-94gb h100-nvl-94gb"),
        _gpu("h20", "NVIDIA H20", 95.12, 4000, {"bf16": 148, "fp8": 296, "int8": 296}, 450, sheet=SHEET,
             aliases="h20-96 h20-96gb"),
        _gpu("h200", "NVIDIA H200", 139.8, 4800, _FLOPS_H100, 450, memory_from=TORCH, sheet=AIC,
             aliases="h200-141 h200-141gb h200-sxm"),
        _gpu("gh200", "NVIDIA GH200 480GB", 95.12, 4000, _FLOPS_H100, 450, sheet=SHEET,
             aliases="gh200-96 gh200-96gb"),
        _gpu("b200", "NVIDIA B200", 178.35, 7700, {"bf16": 2250, "fp8": 4500, "int8": 4500, "fp4": 9000}, 900,
             memory_from=TORCH, sheet=AIC, aliases="b200-180 b200-180gb b200-sxm"),
        _gpu("gb200", "NVIDIA GB200", 184.57, 8000, {"bf16": 2500, "fp8": 5000, "int8": 5000, "fp4": 10000}, 900,
             sheet=AIC, aliases="gb200-186gb"),
        _gpu("b300", "NVIDIA B300", 268.13, 7750, {"bf16": 2250, "fp8": 4500, "int8": 153.5, "fp4": 13500}, 900,
             sheet=AIC, aliases="b300-sxm"),
        _gpu("gb300", "NVIDIA GB300", 277.09, 8000, {"bf16": 2500, "fp8": 5000, "int8": 165, "fp4": 15000}, 900,
             sheet=AIC),
        _gpu("mi300x", "AMD Instinct MI300X", 191.98, 5300, _FLOPS_MI300, 448,
             memory_from=AMD, sheet=AMD),
        _gpu("mi325x", "AMD Instinct MI325X", 255.98, 6000, _FLOPS_MI300, 448,
             memory_from=AMD, sheet=AMD),
    )
}  # fmt: skip
_WORDS = re.compile(r"nvidia|geforce|tesla|amd|instinct|generation|(server|workstation|max-q) edition|oam|hbm\de?")
_FLOPS = {f"{dtype}_flops": dtype for dtype in ("bf16", "fp8", "int8", "fp4")}
_PREFIXES = ["", "k", "m", "g", "t", "p"]
_QUANTITY = re.compile(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgtp]?)(i?)(?:b|flops?|flop)?(?:/s|ps)?", re.I)
NEEDED = ("memory", "bandwidth", "bf16_flops")


def gpu_key(name: str) -> str:
    """A name without maker, series and punctuation: `NVIDIA A100-SXM4-40GB` is `a100sxm440gb`, `RTX A6000` `a6000`."""
    plain = re.sub(r"[^a-z0-9]", "", _WORDS.sub("", name.lower()))
    return re.sub(r"^rtx(?=a\d|\d{4}$)", "", plain)


_BY_KEY = {
    gpu_key(name): gpu for gpu in GPUS.values() for name in (gpu.short, gpu.name, *gpu.aliases)
}  # `4090`, `RTX 4090` and `NVIDIA GeForce RTX 4090` alike


def known_gpu(name: str) -> Gpu | None:
    """The GPU of this name, as a person, `nvidia-smi` or a profile writes it; None for others."""
    return _BY_KEY.get(gpu_key(name))


def find_gpu(name: str, place: str = "--gpu") -> Gpu:
    """The GPU of this name, else a UserError with all names.

    A guess has the same numbers and letters before them: `rtx3080` is no misspelt `rtx3090`, nor `b100` an `h100`.
    """
    if (gpu := known_gpu(name)) is not None:
        return gpu
    size = _size(gpu_key(name))
    # a name that ends with its number is whole: an RTX 6000 is no RTX 6000 Ada, and has half of its memory
    alike = [key for key in _BY_KEY if not gpu_key(name)[-1:].isdigit() and _size(key) == size]
    near = get_close_matches(gpu_key(name), alike, n=1, cutoff=0.5)
    guess = f"did you mean {_BY_KEY[near[0]].short}? " if near else ""
    own = "or give your own: --gpu-spec memory=24GiB,bandwidth=936GB/s,bf16_flops=71T,link=32GB/s"
    raise UserError(Problem(place, "is not known", name, f"{guess}known: {', '.join(GPUS)}; {own}"))


def _size(key: str) -> list[str]:
    """`h10080gb`: letters to the first number, then all numbers."""
    numbers = re.findall(r"\d+", key)
    return [re.split(r"\d", key)[0], *numbers] if numbers else []


def gpu_of(name: str | None, spec: str | None = None, place: str = "--gpu") -> Gpu:
    """A GPU by name, by a datasheet of one's own, or by both: then `spec` changes what it says of the named one."""
    if spec is not None:
        return _with_spec(None if name is None else find_gpu(name, place), spec)
    if name is None:
        raise UserError(Problem(place, "is missing", mend=f"one of {', '.join(GPUS)}, or --gpu-spec"))
    return find_gpu(name, place)


def _with_spec(base: Gpu | None, spec: str) -> Gpu:
    """`memory=24GiB,bandwidth=936GB/s,bf16_flops=71T[,fp8_flops=..][,link=32GB/s][,name=mine]`."""
    given = dict(_assignments(spec))
    missing = [key for key in NEEDED if key not in given] if base is None else []
    if missing:
        mend = "write it as in memory=24GiB,bandwidth=936GB/s,bf16_flops=71T,link=32GB/s"
        raise UserError(Problem("--gpu-spec", f"{', '.join(missing)} missing", spec, mend))
    short = re.sub(r"[^a-z0-9.]+", "-", given.pop("name", "custom" if base is None else base.short).lower())
    known = base or Gpu(short, short, 0, 0.0, {}, 16e9)
    values = {key: _quantity(f"--gpu-spec {key}", text) for key, text in given.items()}
    flops = {dtype: values[key] for key, dtype in _FLOPS.items() if key in values}
    return replace(
        known,
        short=short,
        total_bytes=int(values.get("memory", known.total_bytes)),
        bandwidth_bytes_per_s=values.get("bandwidth", known.bandwidth_bytes_per_s),
        flops_per_s={**known.flops_per_s, **flops},
        link_bytes_per_s=values.get("link", known.link_bytes_per_s),
    )


def _assignments(spec: str) -> list[tuple[str, str]]:
    keys, pairs = ("memory", "bandwidth", "link", *_FLOPS, "name"), []
    for part in spec.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if key not in keys or not equals or not value:
            raise UserError(Problem("--gpu-spec", f"takes KEY=VALUE with the keys {', '.join(keys)}", part))
        pairs.append((key, value))
    return pairs


def memory_bytes(text: str) -> int:
    """`24GiB` or `24GB` in bytes; UserError for anything else."""
    return int(_quantity("--memory", text))


def _quantity(place: str, text: str) -> float:
    """`24GiB`, `936GB/s`, `71T`, `1e12`: a bare number above a million is in bytes or per second."""
    match = _QUANTITY.fullmatch(text)
    base = 1024.0 if match and match[3] else 1000.0
    factor = base ** _PREFIXES.index(match[2].lower()) if match else 0.0
    try:
        value = float(match[1]) * factor if match else 0.0
    except ValueError:
        value = 0.0
    if not 1e6 < value < 1e18:
        rule = "must be a number with its unit, as 24GiB, 936GB/s or 71T"
        raise UserError(Problem(place, rule, text))
    return value


def default_batch_limits(gpu: str, total_bytes: int) -> tuple[int, int]:
    """VLLM 0.32's `max_num_seqs` and `max_num_batched_tokens` (engine/arg_utils.py): by memory, but low on A100."""
    if total_bytes < 70 * GIB or gpu.startswith("a100"):
        return 256, 2048
    return 1024, 16384 if total_bytes >= 160 * GIB else 8192


DATA_CENTER_BLACKWELL = ("b200", "b300", "gb200", "gb300")  # compute capability 10.x


def default_max_capture_size(gpu: str) -> int:
    """Tokens in the largest CUDA graph that vLLM 0.32 captures unasked (config/vllm.py); on a CPU it captures none."""
    if gpu == "cpu":
        return 0
    return 1024 if gpu in DATA_CENTER_BLACKWELL else 512


GPT_OSS = re.compile(r"gpt[-_]?oss", re.IGNORECASE)  # in the name of a model or of an architecture


def capture_size_of_model(model: str) -> int | None:
    """`max_cudagraph_capture_size` that vLLM sets for a model where nobody does (model_executor/models/config.py)."""
    return 1024 if GPT_OSS.search(model) else None


def profile_name(gpu: str, model: str, quantisation: str, kv_cache_dtype: str, tensor_parallel_size: int) -> str:
    """`<gpu>-<model>-<weights>[-kvfp8][-tpN]` in lower case; no organisation, nor the weights twice."""
    short = model.rsplit("/", 1)[-1].lower().removesuffix(f"-{quantisation.partition('_')[0]}")
    parts = [gpu, short, quantisation]
    if kv_cache_dtype.startswith("fp8"):
        parts.append("kvfp8")
    if tensor_parallel_size > 1:
        parts.append(f"tp{tensor_parallel_size}")
    return "-".join(parts).lower()
