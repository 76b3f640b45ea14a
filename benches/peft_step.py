"""A training step of the bench model's shape in PyTorch, whole or as a LoRA of rank 16 with PEFT.

    python benches/peft_step.py full|lora

Needs torch, transformers and peft. Both decoders are LLaMA's; the MLPs of the first have three narrower matrices instead of
two, so that it has 216.5 M parameters instead of 225.6 M.
"""

import resource
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaModel

TOKENS, LABELS, VOCABULARY = 640, 20, 32000


def decoder(hidden, intermediate, layers, heads, kv_heads):
    return LlamaModel(
        LlamaConfig(
            vocab_size=8,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            attention_bias=True,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(VOCABULARY, 512)
        self.pre_decoder = decoder(512, 1365, 8, 8, 8)
        self.connector = torch.nn.Linear(512, 1024)
        self.post_decoder = decoder(1024, 2816, 12, 16, 8)
        self.lm_head = torch.nn.Linear(1024, VOCABULARY, bias=False)

    def forward(self, ids):
        hidden = self.pre_decoder(inputs_embeds=self.embed_tokens(ids)).last_hidden_state
        hidden = self.post_decoder(inputs_embeds=self.connector(hidden)).last_hidden_state
        return self.lm_head(hidden[:, -LABELS:])


torch.set_num_threads(2)
torch.manual_seed(0)
model = Model()
if sys.argv[1] == "lora":
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "connector"]
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=projections))
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-5)
ids = torch.randint(0, VOCABULARY, (1, TOKENS))
times = []
for _ in range(6):
    began = time.time()
    torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids[0, -LABELS:]).backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.time() - began)
median = sorted(times)[len(times) // 2]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
print(f"{min(times):.1f} to {max(times):.1f} s a step, median {median:.1f}; peak {peak:.0f} MB")
