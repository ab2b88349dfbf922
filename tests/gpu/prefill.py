"""Prefill of a model with the shape of Llama-3.1-8B and random weights: tokens a second.

What a restored context saves is this much computing. A line of JSON for each length. Speed does not depend on what the weights are,
only on their shapes: 32 layers of 4096, 32 heads of 128, 8 of them for K and V, 14336 between.
Ends with 3 and one line where PyTorch or memory on the GPU is missing.
"""

import argparse
import json
import sys
import time

LACKS = 3
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, BETWEEN, WORDS = 32, 4096, 32, 8, 128, 14336, 128256
# Weights in bf16, and room for activations, K and V of the longest context.
NEEDED_BYTES = 22 << 30
# Prefill in pieces, as engines do.
PIECE = 8192

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    print(f"PyTorch is not installed: {error}", file=sys.stderr)
    sys.exit(LACKS)


class Layer:
    def __init__(self, device):
        def weight(rows, columns):
            return torch.randn(rows, columns, dtype=torch.bfloat16, device=device) * columns**-0.5

        self.qkv = weight((HEADS + 2 * KV_HEADS) * HEAD, WIDTH)
        self.out = weight(WIDTH, HEADS * HEAD)
        self.gate_up = weight(2 * BETWEEN, WIDTH)
        self.down = weight(WIDTH, BETWEEN)

    def forward(self, x, start, k_cache, v_cache):
        tokens = x.shape[0]
        qkv = F.linear(F.rms_norm(x, (WIDTH,)), self.qkv).view(tokens, HEADS + 2 * KV_HEADS, HEAD)
        q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        k_cache[start : start + tokens], v_cache[start : start + tokens] = k, v
        # Heads first, with a batch of one. K and V of a group of heads are the same memory.
        q = q.transpose(0, 1).unsqueeze(0)
        group = HEADS // KV_HEADS
        k = k_cache[: start + tokens].transpose(0, 1).unsqueeze(0).repeat_interleave(group, 1)
        v = v_cache[: start + tokens].transpose(0, 1).unsqueeze(0).repeat_interleave(group, 1)
        if start == 0:
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            from torch.nn.attention.bias import causal_lower_right

            mask = causal_lower_right(tokens, start + tokens)
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + F.linear(seen.squeeze(0).transpose(0, 1).reshape(tokens, HEADS * HEAD), self.out)
        gate, up = F.linear(F.rms_norm(x, (WIDTH,)), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)


def prefill(layers, embedding, context, device):
    caches = [
        torch.empty(2, context, KV_HEADS, HEAD, dtype=torch.bfloat16, device=device) for _ in layers
    ]
    words = torch.randint(WORDS, (context,), device=device)
    torch.cuda.synchronize(device)
    since = time.perf_counter()
    for start in range(0, context, PIECE):
        x = embedding[words[start : start + PIECE]]
        for layer, cache in zip(layers, caches):
            x = layer.forward(x, start, cache[0], cache[1])
    # The first word after the context.
    F.linear(x[-1:], embedding)
    torch.cuda.synchronize(device)
    return time.perf_counter() - since


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--contexts", default="2048,8192,32768")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU", file=sys.stderr)
        return LACKS
    device = torch.device("cuda", arguments.device)
    free, _ = torch.cuda.mem_get_info(device)
    if free < NEEDED_BYTES:
        print(f"{free} bytes are free on the GPU, {NEEDED_BYTES} are needed", file=sys.stderr)
        return LACKS
    torch.manual_seed(1)
    layers = [Layer(device) for _ in range(LAYERS)]
    embedding = torch.randn(WORDS, WIDTH, dtype=torch.bfloat16, device=device)
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name(device)}")
    with torch.inference_mode():
        prefill(layers, embedding, PIECE, device)
        for context in (int(context) for context in arguments.contexts.split(",")):
            took = min(prefill(layers, embedding, context, device) for _ in range(2))
            print(json.dumps({"tokens": context, "seconds": took, "tokens_per_s": context / took}))
    return 0


sys.exit(main())
