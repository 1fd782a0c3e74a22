"""A model on disk: a directory in Hugging Face layout, read and written without transformers.

config.json says the shape, model.safetensors holds the tensors, the tokenizer files stand beside
them. This one form serves the hub's models, our own runs and our exports. The way in:

    directory = locate("gpt2")                       # a hub name or a directory
    settings = read_config(directory)                # keyword arguments of GPTConfig
    tensors = read_tensors(directory, shapes)        # the model's own names and orientation

and the way out, `write_model(directory, tensors, settings)`. A setting that would change the
numbers is refused by name and every tensor is accounted for; pickles are read as tensors only; a
directory or a file is there whole or not at all; one copy of the model is in memory. Nothing here
knows the model's code: names.py is the whole agreement between the two.
"""

from regpt.weights.config import read_config
from regpt.weights.hub import locate
from regpt.weights.names import tensor_shapes
from regpt.weights.read import read_tensors
from regpt.weights.write import write_model, write_model_files, write_safetensors

__all__ = [
    "locate",
    "read_config",
    "read_tensors",
    "tensor_shapes",
    "write_model",
    "write_model_files",
    "write_safetensors",
]
