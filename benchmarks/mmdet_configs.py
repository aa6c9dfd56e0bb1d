"""Which of mmdet's configs build, and which operators their models call: ``python -m benchmarks.mmdet_configs``.

With ``--each`` it prints the operators of each config. Neither weights nor images are needed, nor a GPU: the operators
are read from the code of the classes that a model is made of.
"""

from __future__ import annotations

import argparse
import collections
import copy
import dis
import itertools
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

import resnet_backbone.integrations.mmdet.operators  # noqa: F401 - before mmdet
from resnet_backbone.integrations.mmdet.extension import OPERATORS

# Functions of other packages are not read: none calls mmcv.
READ = ("mmcv.ops", "mmdet.", "resnet_backbone.")


def read_models(only: list[str] | None = None) -> dict[str, Any]:
    """Return the ``model`` of every config that mmdet ships (in some folders), without what it would download."""
    import mmdet
    from mmdet.utils import register_all_modules

    register_all_modules()
    # Some configs name another by its path in a checkout of mmdet.
    os.chdir(Path(mmdet.__file__).parent / ".mim")
    files = {"bert-base-uncased": write_small_bert()}
    models = {}
    for path in sorted(Path("configs").rglob("*.py")):
        name = path.relative_to("configs").as_posix()
        if "_base_" in name or (only and name.partition("/")[0] not in only):
            continue
        try:
            config = Config.fromfile(str(path), import_custom_modules=False)
        except Exception as error:  # noqa: BLE001 - a config is code
            print(f"not a config here: {name}: {explain(error)}")
            continue
        model = config.get("model")
        # Fragments, such as schedules in mmengine's new style, have no model. RTMDet's classifiers are mmpretrain's.
        if isinstance(model, dict) and "type" in model and config.get("default_scope", "mmdet") == "mmdet":
            models[name] = without_downloads(model, files)
    return models


def without_downloads(node: Any, files: dict[str, str]) -> Any:
    """Copy a part of a config without checkpoints to start from, and with files in place of others."""
    if isinstance(node, dict):
        kept = {}
        for key, value in node.items():
            if is_checkpoint(key, value):
                kept[key] = False if value is True else None
            else:
                kept[key] = without_downloads(value, files)
        return type(node)(kept)
    if isinstance(node, (list, tuple)):
        return type(node)([without_downloads(value, files) for value in node])
    return files.get(node, node) if isinstance(node, str) else node


def is_checkpoint(key: str, value: Any) -> bool:
    """Whether a config's entry names a checkpoint."""
    if key == "init_cfg":
        return isinstance(value, dict) and value.get("type") == "Pretrained"
    return key in ("pretrained", "teacher_ckpt", "checkpoint") and bool(value)


def write_small_bert() -> str:
    """Write the files of a BERT with two layers and random weights; return their folder."""
    folder = tempfile.mkdtemp()
    try:
        from transformers import BertConfig, BertModel, BertTokenizer
    except ImportError:
        return folder
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "person", "bicycle"]
    Path(folder, "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(Path(folder, "vocab.txt"))).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words), num_hidden_layers=2)).save_pretrained(folder)
    return folder


def build(model: Any, device: str = "cpu") -> nn.Module:
    """Build a model; on 'meta' its weights take neither memory nor time."""
    from mmdet.registry import MODELS

    with torch.device(device):
        return MODELS.build(copy.deepcopy(model))  # type: ignore[no-any-return]


def operators_of(model: nn.Module, config: Any) -> set[str]:
    """Return the operators of ``mmcv._ext`` that a model may call, by the code of its classes."""
    from mmcv import ops

    parts: list[Any] = [*classes_in(model), *(getattr(ops, name, None) for name in types_in(config))]
    found, seen = set(), set()
    while parts:
        for used in names_used(parts.pop()):
            if isinstance(used, str):
                found.add(used)
            elif id(used) not in seen:
                seen.add(id(used))
                parts.append(used)
    return found


def classes_in(node: Any, seen: set[int] | None = None) -> Iterator[type]:
    """Yield the classes of a model's modules, and of the coders, assigners and samplers that they hold."""
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, (list, tuple, dict)):
        children: Any = node.values() if isinstance(node, dict) else node
    elif isinstance(node, nn.Module) or type(node).__module__.startswith(READ):
        yield from (base for base in type(node).__mro__ if base.__module__.startswith(READ))
        children = vars(node).values() if hasattr(node, "__dict__") else ()
    else:
        return
    for child in children:
        yield from classes_in(child, seen)


def types_in(node: Any) -> Iterator[str]:
    """Yield every type that a config names, such as ``soft_nms``."""
    if isinstance(node, dict):
        yield str(node.get("type"))
        node = node.values()
    if not isinstance(node, str) and hasattr(node, "__iter__"):
        for value in node:
            yield from types_in(value)


def names_used(part: Any) -> Iterator[Any]:
    """Yield the functions that a class, function or code uses, and the names of the operators it calls."""
    # `apply` of an autograd function is bound to its class.
    part = getattr(part, "__self__", part)
    if isinstance(part, type):
        for member in vars(part).values():
            yield from (getattr(member, name) for name in ("__func__", "fget") if hasattr(member, name))
            if isinstance(member, FunctionType):
                yield member
    elif isinstance(part, FunctionType):
        # Of a decorated function, both.
        yield from (
            cell.cell_contents for cell in part.__closure__ or () if isinstance(cell.cell_contents, FunctionType)
        )
        yield from names_in_code(part.__code__, part.__globals__)


def names_in_code(code: CodeType, names: dict[str, Any]) -> Iterator[Any]:
    """Yield what ``names_used`` does, of a function's code."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in_code(constant, names)
    for instruction, following in itertools.pairwise(dis.get_instructions(code)):
        value = names.get(instruction.argval) if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") else None
        if isinstance(value, ModuleType):
            if value.__name__ == "mmcv._ext":
                yield following.argval
                continue
            value = getattr(value, str(following.argval), None)
        owner = getattr(value, "__self__", value)
        is_function = isinstance(owner, type) and issubclass(owner, torch.autograd.Function)
        if (is_function or isinstance(value, FunctionType)) and owner.__module__.startswith(READ):
            yield owner


def examine(config: Any) -> set[str] | str:
    """Return the operators that a config's model may call, or why it cannot be built."""
    try:
        try:
            model = build(config, "meta")
        except Exception:  # noqa: BLE001 - some compute while they are built, which 'meta' cannot
            model = build(config)
    except Exception as error:  # noqa: BLE001
        return explain(error)
    return operators_of(model, config)


def explain(error: BaseException) -> str:
    """Describe an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def main() -> None:
    """Print which configs build, and the operators of their models."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", nargs="*", help="only these folders")
    parser.add_argument("--each", action="store_true", help="print the operators of each config")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    models = read_models(arguments.only)
    # Some build synchronized batch norms.
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    known: dict[str, set[str] | str] = {}
    configs_of, failed = collections.defaultdict(list), collections.defaultdict(list)
    for number, (name, config) in enumerate(models.items(), start=1):
        key = json.dumps(config, sort_keys=True, default=str)
        result = known[key] if key in known else known.setdefault(key, examine(config))
        if isinstance(result, str):
            failed[result].append(name)
        else:
            for operator in sorted(result):
                configs_of[operator].append(name)
        if arguments.each:
            print(f"{name}: {result if isinstance(result, str) else ', '.join(sorted(result))}", flush=True)
        elif number % 100 == 0:
            print(f"... {number} of {len(models)}", flush=True)
    print(f"{len(models) - sum(map(len, failed.values()))} of {len(models)} configs with a model build")
    for reason, names in sorted(failed.items()):
        print(f"  {len(names)} do not, such as {names[0]}: {reason}")
    for operator, names in sorted(configs_of.items()):
        supplied = "" if operator in OPERATORS else ", which is NOT supplied without a compiler"
        print(f"  {operator}{supplied}: {len(names)} configs, such as {names[0]}")


if __name__ == "__main__":
    main()
