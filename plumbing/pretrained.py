"""Published weights: read GPT-2 and Mamba in the form in which they are published.

A published model is a folder with `config.json` (its sizes) and `model.safetensors` or
`pytorch_model.bin` (its tensors by name; a large model has several such files and an index). Our
parameter names are the published ones, so little has to be renamed. `train.py --init_from` starts
from these weights, as the fine-tuning rows of Bachmann & Nagarajan 2024 (section 5) do, and
tests/test_pretrained.py shows with them that our models compute what the published ones compute.
In this file: folders, GPT-2, Mamba, fine-tuning.
"""

import json
from pathlib import Path

import torch

from model_gpt import GPT, GPTConfig
from model_mamba import Mamba, MambaConfig

# Their names on the Hugging Face hub
GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MAMBA_SIZES = ("130m", "370m", "790m", "1.4b", "2.8b")
PUBLISHED = {name: f"openai-community/{name}" for name in GPT2_NAMES}
PUBLISHED |= {f"mamba-{size}": f"state-spaces/mamba-{size}-hf" for size in MAMBA_SIZES}


def find_folder(name_or_dir):
    """The folder of a published model: the given one, or that of the named model, downloaded.

    Returns: a Path. Raises: ValueError for an unknown name, or a failed download; ImportError when
        the download needs a package that is not installed.
    """
    folder = Path(name_or_dir)
    if folder.is_dir():
        return folder
    if name_or_dir not in PUBLISHED:
        raise ValueError(
            f"{name_or_dir} is neither a folder nor one of the published models"
            f" {', '.join(PUBLISHED)}"
        )
    try:
        import safetensors  # noqa: F401  (read_file needs it)
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(
            f"fetching {name_or_dir} needs two packages: pip install huggingface_hub safetensors;"
            " or give a folder that has the weights"
        ) from None
    try:
        files = ["config.json", "model*.safetensors*"]
        return Path(snapshot_download(PUBLISHED[name_or_dir], allow_patterns=files))
    except Exception as fault:  # a network can fail in any way
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise ValueError(
            f"{name_or_dir} could not be fetched ({reason}); give a folder that has the weights"
        ) from None


def read_config(folder):
    """Read config.json. Returns: a dict. Raises: ValueError when it is missing or damaged."""
    path = Path(folder, "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path} is missing; a published model is a folder with config.json and its weights"
        ) from None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON object; fetch it again")
    return config


def must_be(config, folder, **expected):
    """Raise a ValueError that names the first setting of config.json that our model cannot have."""
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"{folder}: {name} is {config[name]!r}, but the model here knows {value!r} alone"
            )


def first_of(config, folder, *names):
    """The number under the first of `names` that config.json has: publishers differ in the names.

    Raises: ValueError where it has none.
    """
    for name in names:
        if isinstance(config.get(name), int):
            return config[name]
    raise ValueError(f"{folder}: config.json has no whole number for {' or '.join(names)}")


def read_tensors(folder):
    """Read all tensors. Returns: a dict from name to tensor.

    Raises: ValueError when they are missing or damaged; ImportError without safetensors.
    """
    folder = Path(folder)
    indexes = sorted(folder.glob("*.index.json"))
    try:
        if indexes:
            index = json.loads(indexes[0].read_text(encoding="utf-8"))
            paths = [folder / name for name in sorted(set(index["weight_map"].values()))]
        else:
            paths = [folder / "model.safetensors", folder / "pytorch_model.bin"]
            paths = [path for path in paths if path.exists()][:1]
        tensors = {}
        for path in paths:
            tensors |= read_file(path)
    except ImportError:
        raise ImportError(
            f"reading {path} needs the package safetensors; install it by pip install safetensors"
        ) from None
    except Exception as fault:  # a reader may raise almost anything for a damaged file
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise ValueError(
            f"the weights in {folder} are damaged or incomplete ({reason}); fetch them again"
        ) from None
    if not tensors:
        raise ValueError(
            f"{folder} has neither model.safetensors nor pytorch_model.bin; give a folder that has"
            " the weights"
        )
    return tensors


def read_file(path):
    """The tensors of one file, a dict from name to tensor. Nothing in the file is executed."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def fit(model, tensors, folder):
    """Copy all tensors into a model. Raises: ValueError that names the first that does not fit."""
    places = model.state_dict()
    for name, place in places.items():
        if name not in tensors:
            raise ValueError(f"{folder}: the tensor {name} is missing")
        if tensors[name].shape != place.shape:
            has, must = tuple(tensors[name].shape), tuple(place.shape)
            raise ValueError(
                f"{folder}: the tensor {name} has shape {has}, but config.json makes it {must}"
            )
    if unexpected := sorted(tensors.keys() - places.keys()):
        raise ValueError(
            f"{folder}: the tensor {unexpected[0]} is unexpected: the model here has no place"
            " for it"
        )
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(tensors[name])
    # Our embedding and unembedding are one tensor. If the published ones differ, one is lost now.
    for name, place in places.items():
        if not torch.equal(place, tensors[name].to(place.dtype)):
            raise ValueError(
                f"{folder}: the tensor {name} differs from the embedding, but the model here has"
                " one for both"
            )


# ------------------------------------------------------------------------------------------------
# GPT-2

# GPT-2 is published with these matrices transposed: (inputs, outputs).
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def load_gpt2(name_or_dir):
    """GPT-2 with its published weights, in float32.

    Arguments: "gpt2", "gpt2-medium", "gpt2-large" or "gpt2-xl", or a folder with config.json and
        the weights.
    Returns: a causal GPT without Canon.
    Raises: ValueError or ImportError, in one sentence.
    """
    folder = find_folder(name_or_dir)
    c = read_config(folder)
    must_be(c, folder, model_type="gpt2", layer_norm_epsilon=1e-5, scale_attn_weights=True)
    must_be(c, folder, scale_attn_by_inverse_layer_idx=False, tie_word_embeddings=True)
    if c.get("activation_function") != "gelu_pytorch_tanh":  # another name of gelu_new
        must_be(c, folder, activation_function="gelu_new")
    sizes = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")
    V, T, L, H, C = (first_of(c, folder, name) for name in sizes)
    must_be({"n_inner": c.get("n_inner") or 4 * C}, folder, n_inner=4 * C)
    model = GPT(GPTConfig(V, T, L, H, C, canon=False))
    tensors = {}
    for name, p in read_tensors(folder).items():
        name = name.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")):  # not weights: some publish the mask
            continue
        tensors[name] = p.t() if name.endswith(TRANSPOSED) else p
    tensors.setdefault("lm_head.weight", tensors.get("wte.weight"))
    fit(model, tensors, folder)
    return model


# ------------------------------------------------------------------------------------------------
# Mamba


def state_size(config, folder):
    """d_state of a published Mamba, an int: 16 where state-spaces' config.json leaves it out."""
    listed = config.get("ssm_cfg")
    config = {"d_state": 16} | config | (listed if isinstance(listed, dict) else {})
    return first_of(config, folder, "state_size", "d_state")


def load_mamba(name_or_dir):
    """A Mamba with its published weights, in float32, from state-spaces' or Hugging Face's format.

    Arguments: "mamba-130m", "mamba-370m", "mamba-790m", "mamba-1.4b" or "mamba-2.8b", or a folder
        with config.json and the weights.
    Returns: a Mamba. Raises: ValueError or ImportError, in one sentence.
    """
    folder = find_folder(name_or_dir)
    c = read_config(folder)
    c |= c.get("ssm_cfg") or {}  # here state-spaces lists what differs from its defaults
    must_be(c, folder, model_type="mamba", layer="Mamba1", rms_norm=True, layer_norm_epsilon=1e-5)
    must_be(c, folder, use_bias=False, use_conv_bias=True, hidden_act="silu")
    must_be(c, folder, tie_word_embeddings=True)
    V = first_of(c, folder, "vocab_size")
    V += -V % c.get("pad_vocab_size_multiple", 1)
    rank = c.get("time_step_rank", c.get("dt_rank"))
    config = MambaConfig(
        V,
        n_layer=first_of(c, folder, "num_hidden_layers", "n_layer"),
        n_embd=first_of(c, folder, "hidden_size", "d_model"),
        d_state=state_size(c, folder),
        d_conv=c.get("conv_kernel", c.get("d_conv", 4)),
        expand=c.get("expand", 2),
        dt_rank=rank if isinstance(rank, int) else None,  # else it is "auto"
        mimetic=False,
    )
    model = Mamba(config)
    tensors = {}
    for name, p in read_tensors(folder).items():
        tensors[name.removeprefix("backbone.").replace("embeddings.", "embedding.")] = p
    tensors.setdefault("lm_head.weight", tensors.get("embedding.weight"))
    fit(model, tensors, folder)
    return model


# ------------------------------------------------------------------------------------------------
# Fine-tuning: train.py --init_from


def settings_of(given):
    """The settings of train.py that --init_from fixes, and those whose defaults it changes.

    Arguments: given, a dict of the flags on the command line, with init_from. Returns: a dict.
    Raises: ValueError for a flag that contradicts them, or as find_folder; ImportError.
    """
    folder = find_folder(given["init_from"])
    config = read_config(folder)
    decided = {"model": "gpt" if config.get("model_type") == "gpt2" else "mamba"}
    decided |= {"causal": True, "no_canon": True, "no_mimetic": True}
    decided["n_layer"] = first_of(config, folder, "n_layer", "num_hidden_layers")
    decided["n_embd"] = first_of(config, folder, "n_embd", "hidden_size", "d_model")
    if decided["model"] == "gpt":
        decided["n_head"] = first_of(config, folder, "n_head")
    else:
        decided["d_state"] = state_size(config, folder)
    for name, value in decided.items():
        if given.get(name, value) != value:
            raise ValueError(
                f"--{name} is {given[name]}, but in {folder} it is {value}; leave the flag out"
            )
    return {"optimizer": "adamw", "lr": 1e-4} | decided


def start_from(model, name_or_dir):
    """Put published weights into a model of the task; output heads after the first stay random.

    The task has a few dozen tokens and positions, and needs no tokenizer: its tokens take the first
    rows of the published embedding. In both vocabularies these are mostly single characters, which
    are frequent in text, so their embeddings are well trained: distinct, and of the usual size. It
    does not matter which label gets which character, because every graph draws its labels anew.

    Raises: ValueError, ImportError.
    """
    load = load_gpt2 if isinstance(model, GPT) else load_mamba
    try:
        published = load(name_or_dir).state_dict()
    except (TypeError, AttributeError, ZeroDivisionError, RuntimeError) as fault:
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise ValueError(
            f"--init_from {name_or_dir}: config.json and the weights make no model ({reason});"
            " fetch them again"
        ) from None
    with torch.no_grad():
        for name, p in model.state_dict().items():
            if name.startswith("future"):
                continue
            a_row_each = name.startswith(("wte", "wpe", "embedding", "lm_head"))  # token, position
            rows = published[name][: len(p)] if a_row_each else published[name]
            if rows.shape != p.shape:
                fault = f"{name} is {tuple(rows.shape)}, but the model needs {tuple(p.shape)}"
                fewer = "--deg or --path_len" if name.startswith("wpe") else "--num_nodes"
                fault += f"; give a smaller {fewer}" if a_row_each else ""
                raise ValueError(f"--init_from {name_or_dir}: {fault}")
            p.copy_(rows)
