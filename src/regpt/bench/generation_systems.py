"""The systems that write, each loaded and called in its own worker (`worker.py`).

All get the same job: a prompt of token ids, so many rows, so many new tokens, top-k 50 at
temperature 1, and no row may end early. All read the same exported model. Loading, converting to a
system's own format and packing are not in the time; the prompt is.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regpt.bench.worker import Call

TOP_K = 50
SEED = 42


def regpt(model: str, dtype: str, engine: str) -> Call:
    """Ours: what `regpt sample` does, from the tokens of the prompt to those of the text."""
    import torch

    from regpt.core.model import GPT
    from regpt.core.sampling import SamplingParams
    from regpt.fast.decoding.decoders import choose_decoder
    from regpt.fast.decoding.drafters import Drafter, choose_drafter
    from regpt.fast.decoding.speculative import generate_steps
    from regpt.system.runtime import find_runtime

    runtime = find_runtime("auto", dtype="bf16" if dtype == "bf16" else "fp32")
    gpt = GPT.from_pretrained(model).to(runtime.device)
    decoder, note = choose_decoder(gpt, engine=engine, dtype=dtype)  # pyright: ignore[reportArgumentType]
    if note:
        raise ValueError(note)
    drafters: dict[int, Drafter | None] = {}

    def call(prompt: list[int], rows: int, new: int) -> None:
        length = len(prompt) + new
        params = SamplingParams(max_length=length, top_k=TOP_K, seed=SEED, stop_at_eot=False)
        if rows not in drafters:  # in the first call, which only warms up
            how = "auto" if engine == "auto" else "off"
            drafters[rows] = choose_drafter(decoder, how, rows=rows)
        with runtime.autocast():
            texts = [prompt] * rows
            steps = generate_steps(gpt, texts, params, decoder=decoder, drafter=drafters[rows])
            drawn = [step.tokens for step in steps]
        assert torch.stack(drawn).shape == (new, rows)

    return call


def lecture_loop(model: str) -> Call:
    """The lecture's loop: the whole text through the model for every token, no cache."""
    import torch
    from torch.nn import functional

    from regpt.core.model import GPT
    from regpt.system.runtime import find_device

    device = find_device("auto")
    gpt = GPT.from_pretrained(model).to(device).eval()

    def call(prompt: list[int], rows: int, new: int) -> None:
        torch.manual_seed(SEED)
        x = torch.tensor([prompt] * rows, device=device)
        while x.shape[1] < len(prompt) + new:
            with torch.no_grad():
                logits, _ = gpt(x)
                probabilities = functional.softmax(logits[:, -1, :], dim=-1)
                largest, ids = torch.topk(probabilities, TOP_K, dim=-1)
                choice = torch.multinomial(largest, 1)
                x = torch.cat((x, torch.gather(ids, -1, choice)), dim=1)

    return call


def transformers(model: str, dtype: str) -> Call:
    """transformers' generate; on CUDA with its static cache, which it compiles."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gpt: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    gpt.to(device).eval()
    gpt.generation_config.eos_token_id = None  # no row ends early

    def call(prompt: list[int], rows: int, new: int) -> None:
        torch.manual_seed(SEED)
        idx = torch.tensor([prompt], device=device)
        out = gpt.generate(
            idx, attention_mask=torch.ones_like(idx), do_sample=True, top_k=TOP_K,
            max_new_tokens=new, num_return_sequences=rows, pad_token_id=0,
            cache_implementation="static" if device == "cuda" else None,
        )  # fmt: skip
        assert out.shape == (rows, len(prompt) + new)

    return call


def convert(model: str, out: str) -> Call:
    """Write the export in the form that `out` is named after, or an export `random` itself."""

    def call() -> None:
        import torch

        from regpt.core.model import GPT, GPTConfig

        kind = Path(out).stem
        if kind == "random":
            torch.manual_seed(0)
            GPT(GPTConfig()).save_pretrained(out)
        elif kind == "ctranslate2":
            import ctranslate2 as ct2

            ct2.converters.TransformersConverter(model).convert(out)
        else:
            from regpt.weights.gguf import write_gguf

            gpt = GPT.from_pretrained(model)
            write_gguf(Path(out), gpt.state_dict(), asdict(gpt.config), kind)  # pyright: ignore[reportArgumentType]

    return call


def ctranslate2(model: str, compute_type: str) -> Call:
    """CTranslate2's generator on its own conversion of the export."""
    import ctranslate2 as ct2

    from regpt.weights.tokenizer_files import spelled_vocabulary

    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # 0: its own choice
    generator = ct2.Generator(
        model, compute_type=compute_type, inter_threads=1, intra_threads=threads
    )
    names = list(spelled_vocabulary())

    def call(prompt: list[int], rows: int, new: int) -> None:
        texts = [[names[token] for token in prompt]] * rows
        out = generator.generate_batch(
            texts, min_length=new, max_length=new, sampling_topk=TOP_K,
            include_prompt_in_result=False,
        )  # fmt: skip
        assert [len(result.sequences_ids[0]) for result in out] == [new] * rows

    return call


def llama_cpp(model: str) -> Call:
    """llama.cpp by llama-cpp-python, on a GGUF file; rows one after the other."""
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    from regpt.system.memory import usable_cores

    threads = int(os.environ.get("OMP_NUM_THREADS") or usable_cores())
    llama = Llama(model, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

    def call(prompt: Sequence[int], rows: int, new: int) -> None:
        for _ in range(rows):
            tokens = llama.generate(
                prompt, top_k=TOP_K, top_p=1.0, min_p=0.0, temp=1.0, repeat_penalty=1.0
            )
            for _ in range(new):
                next(tokens)

    return call
