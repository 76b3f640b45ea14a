"""Loads an adapter of this crate with PEFT, merges it there, and compares every weight with what `merge` wrote.

    python tests/parity/peft_export.py MODEL ADAPTER MERGED

MODEL, ADAPTER and MERGED are folders with safetensors files: the base model, the export of a run, and the output of the
example `merge`. Needs torch, peft and safetensors. The base model is a tree of modules with the model's names, since the
architecture does not matter to loading and merging.
"""

import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file


def tensors(folder):
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        found.update(load_file(file))
    return found


def module(root, path):
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, torch.nn.Module())
        root = getattr(root, part)
    return root


def base_model(weights, adapted):
    root = torch.nn.Module()
    for name in sorted(weights):
        *path, leaf = name.split(".")
        owner = ".".join(path)
        if owner in adapted:
            if leaf == "weight":
                outputs, inputs = weights[name].shape
                linear = torch.nn.Linear(inputs, outputs, bias=f"{owner}.bias" in weights)
                module(root, path[:-1]).add_module(path[-1], linear)
        else:
            module(root, path).register_parameter(leaf, torch.nn.Parameter(weights[name].float()))
    root.load_state_dict({name: value.float() for name, value in weights.items()})
    return root


def main(model, adapter, merged):
    warnings.simplefilter("error")
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    names = tensors(adapter)
    adapted = {name[len(prefix) : -len(suffix)] for name in names if name.endswith(suffix)}
    with torch.no_grad():
        result = PeftModel.from_pretrained(base_model(tensors(model), adapted), adapter).merge_and_unload().state_dict()
    expected = tensors(merged)
    assert set(result) == set(expected), set(result) ^ set(expected)
    # A merged weight is rounded once to the dtype of its file.
    rounding = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
    worst = 0.0
    for name, value in expected.items():
        found, value, allowed = result[name], value.float(), rounding[value.dtype]
        worst = max(worst, float(((found - value).abs() / (allowed * value.abs() + 1e-7)).max()))
    print(f"{len(adapted)} adapted layers, {len(expected)} tensors, at most {worst:.2f} of what rounding explains")
    assert worst < 1.01


main(*sys.argv[1:])
