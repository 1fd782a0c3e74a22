"""`regpt explain`: how likely each token of a text was, and what the model looked at."""

import sys
from pathlib import Path

from regpt.system.errors import UserError
from regpt.system.files import make_directory, replace_files

LABEL_LENGTH = 14


def explain(
    prompt: str,
    /,
    *,
    model: str = "gpt2",
    top: int = 5,
    layer: int | None = None,
    head: int | None = None,
    out: str = "explain",
    device: str = "auto",
) -> None:
    """Print each token's probability and alternatives, and write them as a page.

    Args:
        prompt: The text to look into.
        model: A run directory, a Hugging Face directory, a hub name, or `random` (untrained 124M).
        top: Alternatives per position.
        layer: Draw where this layer looks, counted from 0; default: the last.
        head: One head of it, counted from 0; default: all.
        out: A folder for explain.html and the pictures.
        device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps.
    """
    from regpt.commands.models import load_model
    from regpt.core.tokenizer import get_tokenizer
    from regpt.evaluation.explain import attention_maps, explain_text
    from regpt.report.explain_page import explain_page, shown, table_lines
    from regpt.system.plot import heatmaps_png
    from regpt.system.runtime import find_runtime

    tokenizer = get_tokenizer()
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UserError("the text is empty: give some to look into")
    gpt = load_model(model, seed=1337).to(find_runtime(device, dtype="fp32").device)
    chosen = len(gpt.h) - 1 if layer is None else layer
    if head is not None and not 0 <= head < gpt.config.n_head:
        raise UserError(f"--head {head}: the model has heads 0 to {gpt.config.n_head - 1}")
    places = explain_text(gpt, ids, top=top)
    maps = attention_maps(gpt, ids, layer=chosen)
    title = f"attention of layer {chosen}"
    name = f"attention-layer{chosen}"
    if head is not None:
        maps, title, name = maps[head : head + 1], f"{title}, head {head}", f"{name}-head{head}"
    labels = [shown(tokenizer, token)[:LABEL_LENGTH] for token in (tokenizer.eot, *ids)]
    png = heatmaps_png(maps, labels, title=title)
    page = explain_page(places, tokenizer, model=model, maps=[(title.capitalize(), png)])
    folder = Path(out)
    make_directory(folder)
    replace_files(folder, {f"{name}.png": png, "explain.html": page})
    for line in table_lines(places, tokenizer):
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"\n{folder / 'explain.html'}\n{folder / name}.png\n")
