"""Video Sparse Attention in diffusers' Wan, on a small model with random weights. With a real one:

    pipe = diffusers.WanPipeline.from_pretrained(...).to("cuda")
    handle = enable(pipe, sparsity=0.9, gate_weights="gates.safetensors")

    python examples/python/wan_diffusers.py
"""

import torch
from diffusers import WanTransformer3DModel

from vidsparse.integrations.diffusers import enable

torch.manual_seed(0)
transformer = WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=64, in_channels=4, out_channels=4, text_dim=32,
    freq_dim=32, ffn_dim=128, num_layers=2,
).eval()  # fmt: skip
latents = torch.randn(1, 4, 8, 32, 48)  # patches of 1x2x2: a grid of 8 x 16 x 24 tokens
arguments = dict(
    timestep=torch.tensor([500]), encoder_hidden_states=torch.randn(1, 16, 32), return_dict=False
)

with torch.no_grad():
    (dense,) = transformer(latents, **arguments)
    handle = enable(transformer, sparsity=0.9)
    for sparsity in (0.0, 0.5, 0.9):
        handle.sparsity = sparsity
        (out,) = transformer(latents, **arguments)
        apart = ((out - dense).norm() / dense.norm()).item()
        print(f"sparsity {sparsity:.1f}: {apart:.2e} from the stock model")
    handle.disable()
