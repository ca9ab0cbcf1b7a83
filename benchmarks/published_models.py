"""Make `profiler/model/published.json` again: the figures of public models' configs, by Hugging Face name.

    python -m benchmarks.published_models FOLDER [--shared ../shared/models] [--write]

FOLDER is `aiconfigurator_core/model_configs` of the package aiconfigurator-core (PyPI, Apache-2.0). Only the keys that
shapes and storage hang on are kept; names of layers become patterns where all layers of a kind are alike.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import parser_of
from simbatch.profiler.model.checkpoint import bare
from simbatch.profiler.model.config import ModelConfig, model_config_of
from simbatch.profiler.model.weights import weights_of
from simbatch.sim.errors import UserError

OUT = Path(__file__).parents[1] / "profiler" / "model" / "published.json"
SOURCE = (
    "figures of the models' own config.json, as collected by aiconfigurator-core 0.12 (github.com/ai-dynamo/"
    "aiconfigurator, Apache-2.0) or published by their makers; shapes are facts, each model has a licence of its own"
)
BLOCK = ("no_op", "n_heads_in_group", "ffn_mult")
LISTS = ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers")
BY_HAND = Path(__file__).parent / "published_by_hand.json"  # not read from files; their counts of parameters are tested
# By key: what is kept of a config, of a vision tower, and of what a checkpoint says of its quantisation; `folders` of
# ../shared/models whose configs have no name in them; `same_shape`: published under more than one name, of the base and
# with keys of its own.
SOURCES = json.loads(Path(__file__).with_name("published_sources.json").read_text(encoding="utf-8"))


def main() -> None:
    """Compare with what ships, or write it."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared/models"))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    models = collected(arguments.folder, arguments.shared)
    lines = [f"  {json.dumps(name)}: {json.dumps(content)}" for name, content in sorted(models.items())]
    text = f'{{"source": {json.dumps(SOURCE)},\n"models": {{\n' + ",\n".join(lines) + "\n}}\n"
    if arguments.write:
        OUT.write_text(text, encoding="utf-8")
    same = OUT.read_text(encoding="utf-8") == text
    print(f"{len(models)} models; published.json {'is what they make' if same else 'differs'}")
    raise SystemExit(0 if same else 1)


def collected(folder: Path, shared: Path) -> dict[str, dict[str, Any]]:
    """All that can be planned, trimmed, by name; what plans differently when trimmed is left out, with a word."""
    whole = {name: json.loads((shared / path / "config.json").read_text()) for path, name in SOURCES["folders"].items()}
    whole |= json.loads(BY_HAND.read_text())
    for file in sorted(folder.glob("*_config.json")):
        if file.name.endswith("_hf_quant_config.json"):
            continue
        content, beside = json.loads(file.read_text()), file.with_name(file.name.replace("_config", "_hf_quant_config"))
        if "quantization_config" not in content and beside.exists():
            content["quantization_config"] = json.loads(beside.read_text()).get("quantization")
        whole[file.name.removesuffix("_config.json").replace("--", "/")] = content
    for name, (base, own) in SOURCES["same_shape"].items():
        whole[name] = {**whole[base], **own}
    found = {}
    for name, content in whole.items():
        try:
            whole_bytes = _bytes(model_config_of(content, name))
            ways = (trimmed(content, shorten) for shorten in (patterns, numbered))
            kept = next((way for way in ways if _bytes(model_config_of(way, name)) == whole_bytes), None)
            if kept is not None:
                found[name] = kept
            else:
                print(f"{name}: left out, its layers' types cannot be written shortly")
        except UserError as error:
            print(f"{name}: left out, {str(error)[:90]}")
    return found


def _bytes(config: ModelConfig) -> int:
    return weights_of(config, config.quantisation or "bf16").total


def trimmed(content: dict[str, Any], shorten: Callable[[Iterable[str]], list[str]]) -> dict[str, Any]:
    """Only what shapes and storage hang on; `shorten` puts names of modules together."""
    found = {key: content[key] for key in SOURCES["kept"] if content.get(key) is not None}
    if content.get("block_configs"):  # DeciLM's layers
        blocks = ({part: block[part] for part in ("attention", "ffn")} for block in content["block_configs"])
        found["block_configs"] = [
            {part: {key: one[key] for key in BLOCK if one.get(key) is not None} for part, one in block.items()}
            for block in blocks
        ]
    if isinstance(content.get("text_config"), dict):
        found["text_config"] = trimmed(content["text_config"], shorten)
    if isinstance(content.get("vision_config"), dict):
        vision = content["vision_config"]
        found["vision_config"] = {key: vision[key] for key in SOURCES["vision"] if vision.get(key) is not None}
    if isinstance(content.get("quantization_config"), dict):
        found["quantization_config"] = _quantisation(content["quantization_config"], shorten)
    return found


def _quantisation(content: dict[str, Any], shorten: Callable[[Iterable[str]], list[str]]) -> dict[str, Any]:
    found = {key: content[key] for key in SOURCES["quantisation"] if content.get(key) is not None}
    for key in LISTS:
        if content.get(key):
            found[key] = shorten(content[key])
    if content.get("quantized_layers"):
        by_type = defaultdict(list)
        for name, one in content["quantized_layers"].items():
            by_type[json.dumps(one, sort_keys=True)].append(name)
        found["quantized_layers"] = {name: json.loads(one) for one, names in by_type.items() for name in shorten(names)}
    elif isinstance(content.get("config_groups"), dict):
        found["config_groups"] = {
            name: {"targets": shorten(one.get("targets", [])), "weights": one.get("weights")}
            for name, one in content["config_groups"].items()
        }
    return found


def patterns(names: Iterable[str]) -> list[str]:
    """The names with `*` for numbers of layers and experts, each once."""
    return list(
        dict.fromkeys(name if name.startswith("re:") else re.sub(r"\.\d+(?=[.*]|$)", ".*", name) for name in names)
    )


def numbered(names: Iterable[str]) -> list[str]:
    """Exactly those modules, shortly: `layers.3.mlp` and `layers.5.mlp` are one expression of the layers 3 and 5."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    others = []
    for name in names:
        at = None if name.startswith("re:") else re.search(r"\.(\d+)(?=[.*]|$)", bare(name))
        if at is None:
            others.append(name)
        else:
            found[bare(name)[: at.start()], bare(name)[at.end() :]].append(at[1])
    written = [
        f"re:{_escaped(head)}\\.({'|'.join(sorted(set(layers), key=int))}){_escaped(tail)}"
        + ("" if tail.endswith("*") else "(\\.|$)")
        for (head, tail), layers in found.items()
    ]
    return [*others, *written]


def _escaped(name: str) -> str:
    return re.escape(name).replace("\\*", ".*")


if __name__ == "__main__":
    main()
