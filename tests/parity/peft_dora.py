"""Writes tests/fixtures/dora.safetensors: a linear layer adapted by PEFT's DoRA, its result, gradients and merged weight.

    python tests/parity/peft_dora.py tests/fixtures/dora.safetensors

Needs torch, peft and safetensors. All values come from seed 0. The magnitude is not the norm of the adapted weight, as
after training. Names are PEFT's, and `grad.` before the name of what a gradient is of.
"""

import sys

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file


def main(path):
    torch.manual_seed(0)
    base = torch.nn.ModuleDict({"proj": torch.nn.Linear(7, 5)})
    weight, bias = base["proj"].weight.detach().clone(), base["proj"].bias.detach().clone()
    config = LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["proj"])
    model = get_peft_model(base, config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.5 * torch.randn_like(parameter))
    x = torch.randn(2, 3, 7, requires_grad=True)
    g = torch.randn(2, 3, 5)
    y = model.base_model.model["proj"](x)
    (y * g).sum().backward()
    adapter = get_peft_model_state_dict(model)
    kinds = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]
    of_kind = {kind: next(p for name, p in trained.items() if kind.split(".")[0] in name) for kind in kinds}
    tensors = {"weight": weight, "bias": bias, "x": x.detach(), "g": g, "y": y.detach(), "grad.x": x.grad}
    for kind in kinds:
        tensors[kind] = next(tensor for name, tensor in adapter.items() if name.endswith(kind))
        tensors[f"grad.{kind}"] = of_kind[kind].grad
    tensors["merged"] = model.merge_and_unload()["proj"].weight
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)
    print({name: list(tensor.shape) for name, tensor in adapter.items()})


main(*sys.argv[1:])
