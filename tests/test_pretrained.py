"""Published weights: our models compute what Hugging Face's do, and a folder that does not fit is told in one sentence."""

import fnmatch
import json
import math
import shutil
import sys

import pytest
import torch

import data
import train
from model_gpt import GPT, GPTConfig
from model_mamba import Mamba, MambaConfig
from plumbing import flags, pretrained
from plumbing.pretrained import TRANSPOSED, load_gpt2, load_mamba

GPT_SIZES = dict(vocab_size=60, block_size=70, n_layer=3, n_head=4, n_embd=24)
MAMBA_SIZES = dict(vocab_size=60, n_layer=3, n_embd=24, d_state=8, d_conv=4, mimetic=False)


def random_model(kind, **changes):
    """A model of ours with noise on every parameter, so that no gain hides behind a 1 and no bias behind a 0."""
    torch.manual_seed(0)
    if kind == "gpt":
        model = GPT(GPTConfig(**GPT_SIZES | dict(canon=False) | changes))
    else:
        model = Mamba(MambaConfig(**MAMBA_SIZES | changes))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def write_folder(folder, config, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))


def save_gpt2(model, folder):
    """Write a GPT in the published form, which load_gpt2 and Hugging Face's GPT2LMHeadModel can read."""
    c, tensors = model.config, {}
    sizes = dict(vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head)
    kind = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], activation_function="gelu_new")
    for name, p in model.state_dict().items():
        if not name.startswith(("future", "lm_head")):
            tensors[f"transformer.{name}"] = p.t() if name.endswith(TRANSPOSED) else p
    write_folder(folder, kind | sizes | dict(bos_token_id=None, eos_token_id=None), tensors)


def save_mamba(model, folder):
    """Write a Mamba in the published form, which load_mamba and Hugging Face's MambaForCausalLM can read."""
    c, tensors = model.config, {}
    sizes = dict(vocab_size=c.vocab_size, hidden_size=c.n_embd, num_hidden_layers=c.n_layer)
    sizes |= dict(state_size=c.d_state, conv_kernel=c.d_conv, expand=c.expand, time_step_rank=c.dt_rank or math.ceil(c.n_embd / 16))
    for name, p in model.state_dict().items():
        if not name.startswith(("future", "lm_head")):
            tensors["backbone." + name.replace("embedding.", "embeddings.")] = p
    write_folder(folder, dict(model_type="mamba", architectures=["MambaForCausalLM"]) | sizes, tensors)


def load(kind, folder):
    return (load_gpt2 if kind == "gpt" else load_mamba)(folder)


def save(kind, model, folder):
    (save_gpt2 if kind == "gpt" else save_mamba)(model, folder)


def tokens(*shape):
    return torch.randint(60, shape, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------------------------------
# Against Hugging Face


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="the comparison with Hugging Face needs transformers")


def theirs(transformers, kind):
    """A small random model of Hugging Face's."""
    torch.manual_seed(0)
    none = dict(bos_token_id=None, eos_token_id=None)
    if kind == "gpt":
        sizes = dict(vocab_size=60, n_positions=70, n_embd=24, n_layer=3, n_head=4)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **none))
    else:
        sizes = dict(vocab_size=60, hidden_size=24, num_hidden_layers=3, state_size=8)
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("kind", ["gpt", "mamba"])
def test_logits_are_those_of_hugging_face(transformers, tmp_path, kind, safe):
    other = theirs(transformers, kind)
    other.save_pretrained(tmp_path)
    if not safe:
        (tmp_path / "model.safetensors").unlink()
        torch.save(other.state_dict(), tmp_path / "pytorch_model.bin")
    ours = load(kind, tmp_path)
    with torch.no_grad():
        assert (ours(tokens(3, 40)) - other(tokens(3, 40)).logits).abs().max() < 1e-4
        difference = ours.double()(tokens(3, 40)) - other.double()(tokens(3, 40)).logits
    assert difference.abs().max() < (1e-10 if kind == "gpt" else 1e-5)  # their Mamba computes parts of it in float32


@pytest.mark.parametrize("kind", ["gpt", "mamba"])
def test_cached_decoding_writes_what_theirs_writes(transformers, tmp_path, kind):
    other = theirs(transformers, kind)
    other.save_pretrained(tmp_path)
    ours, prefix = load(kind, tmp_path), tokens(4, 10)
    with torch.no_grad():
        expected = other.generate(
            prefix, attention_mask=torch.ones_like(prefix), max_new_tokens=50, do_sample=False, pad_token_id=0
        )
        cache, written = ours.new_cache(4, 60), prefix
        for _ in range(50):
            unread = prefix if written is prefix else written[:, -1:]
            written = torch.cat([written, ours(unread, 1, cache).argmax(dim=2)], dim=1)
    assert torch.equal(written, expected)


@pytest.mark.parametrize(
    "kind, changes",
    [("gpt", {}), ("gpt", dict(n_future=3)), ("mamba", {})],
)
def test_hugging_face_reads_what_we_save(transformers, tmp_path, kind, changes):
    ours = random_model(kind, **changes)
    save(kind, ours, tmp_path)
    other_class = transformers.GPT2LMHeadModel if kind == "gpt" else transformers.MambaForCausalLM
    other, report = other_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        assert (ours(tokens(2, 30)) - other.eval()(tokens(2, 30)).logits).abs().max() < 1e-4


def test_large_models_come_in_several_files(transformers, tmp_path):
    other = theirs(transformers, "gpt")
    other.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert (load_gpt2(tmp_path)(tokens(1, 9)) - other(tokens(1, 9)).logits).abs().max() < 1e-4


# ---------------------------------------------------------------------------------------------------------
# By ourselves


@pytest.mark.parametrize(
    "kind, changes", [("gpt", {}), ("mamba", {}), ("mamba", dict(d_conv=3, expand=3, dt_rank=5))]
)
def test_saved_and_loaded_is_the_same(tmp_path, kind, changes):
    ours = random_model(kind, **changes)
    save(kind, ours, tmp_path)
    again = load(kind, tmp_path)
    spelled_out = dict(dt_rank=ours.layers[0].mixer.dt_rank) if kind == "mamba" else {}
    assert vars(again.config) == vars(ours.config) | spelled_out
    assert torch.equal(again(tokens(2, 30)), ours(tokens(2, 30)))


def test_one_activation_of_two_names_is_read_by_both(tmp_path):
    ours = random_model("gpt")
    save("gpt", ours, tmp_path)
    for name in ("gelu_new", "gelu_pytorch_tanh"):
        edit_config(activation_function=name)(tmp_path)
        assert torch.equal(load_gpt2(tmp_path)(tokens(2, 30)), ours(tokens(2, 30)))


@pytest.mark.parametrize("unusual", [{}, dict(d_conv=3, expand=3, dt_rank=5)])
def test_the_folders_of_state_spaces_are_read_too(tmp_path, unusual):
    ours = random_model("mamba", vocab_size=64, **unusual)
    names = {f"backbone.{name}": p for name, p in ours.state_dict().items() if name != "lm_head.weight"}
    torch.save(names | {"lm_head.weight": ours.embedding.weight.data}, tmp_path / "pytorch_model.bin")
    unusual = dict(d_state=8) | unusual
    config = dict(d_model=24, n_layer=3, vocab_size=60, ssm_cfg=unusual, rms_norm=True, pad_vocab_size_multiple=8)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(load_mamba(tmp_path)(tokens(2, 30)), ours(tokens(2, 30)))


def edit_config(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


def edit_tensors(change):
    def edit(folder):
        tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
        change(tensors)
        torch.save(tensors, folder / "pytorch_model.bin")

    return edit


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is damaged"),
        (lambda folder: (folder / "pytorch_model.bin").unlink(), "neither model.safetensors nor pytorch_model.bin"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"PK\3\4"), "are damaged or incomplete"),
        (edit_config(model_type="mamba"), "model_type is 'mamba', but the model here knows 'gpt2' alone"),
        (edit_config(activation_function="silu"), "activation_function is 'silu'"),
        (edit_config(layer_norm_epsilon=1e-6), "layer_norm_epsilon is 1e-06"),
        (edit_config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
        (edit_config(scale_attn_weights=False), "scale_attn_weights is False"),
        (edit_config(n_inner=48), "n_inner is 48, but the model here knows 96 alone"),
        (edit_config(n_layer="three"), "config.json has no whole number for n_layer"),
        (edit_config(n_layer=4), "the tensor h.3.ln_1.weight is missing"),
        (edit_config(n_layer=2), "the tensor h.2.attn.c_attn.bias is unexpected"),
        (
            edit_config(n_positions=71),
            r"the tensor wpe.weight has shape \(70, 24\), but config.json makes it \(71, 24\)",
        ),
        (edit_tensors(lambda t: t.pop("transformer.ln_f.weight")), "the tensor ln_f.weight is missing"),
        (edit_tensors(lambda t: t.update(more=torch.ones(1))), "the tensor more is unexpected"),
        (edit_tensors(lambda t: t.update({"lm_head.weight": torch.ones(60, 24)})), "differs from the embedding"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_sentence(tmp_path, damage, sentence):
    save_gpt2(random_model("gpt"), tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=sentence) as fault:
        load_gpt2(tmp_path)
    assert "\n" not in str(fault.value)


def test_missing_packages_and_unknown_names_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="neither a folder nor one of the published models gpt2, gpt2-medium"):
        load_gpt2("gpt3")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="fetching gpt2-large needs two packages: pip install huggingface_hub safetensors"):
        load_gpt2("gpt2-large")
    save_gpt2(random_model("gpt"), tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="needs the package safetensors"):
        load_gpt2(tmp_path)


def test_a_name_that_cannot_be_fetched_is_one_sentence(monkeypatch):
    class Hub:
        @staticmethod
        def snapshot_download(*_, **__):
            raise ConnectionError("no network\nat all")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    monkeypatch.setitem(sys.modules, "safetensors", Hub)  # which may not be installed
    with pytest.raises(ValueError, match=r"mamba-130m could not be fetched \(no network\)"):
        load_mamba("mamba-130m")


def test_all_files_of_a_large_model_are_fetched(tmp_path, monkeypatch):
    class Hub:
        @staticmethod
        def snapshot_download(name, allow_patterns):
            wanted.extend(file for file in files if any(fnmatch.fnmatch(file, p) for p in allow_patterns))
            return tmp_path / name

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    monkeypatch.setitem(sys.modules, "safetensors", Hub)  # which may not be installed
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    needed, wanted = ["config.json", "model.safetensors", *parts, "model.safetensors.index.json"], []
    files = [*needed, "flax_model.msgpack", "pytorch_model.bin", "tf_model.h5", "onnx/decoder_model.onnx", "README.md"]
    assert pretrained.find_folder("mamba-2.8b") == tmp_path / "state-spaces" / "mamba-2.8b-hf"
    assert wanted == needed


# ---------------------------------------------------------------------------------------------------------
# Fine-tuning: python train.py --init_from DIR

SMALL = "--path_len 3 --num_nodes 12 --n_test 200 --batch_size 32 --threads 1 --device cpu".split()


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "kind, change",
    [
        ("gpt", dict(n_inner="96")),
        ("gpt", dict(vocab_size=-5)),
        ("mamba", dict(expand="2")),
        ("mamba", dict(ssm_cfg=5)),
        ("mamba", dict(pad_vocab_size_multiple=0)),
        ("mamba", dict(conv_kernel=-1)),
    ],
)
def test_an_odd_published_config_is_one_sentence(tmp_path, capsys, kind, change):
    small = random_model(kind)
    save(kind, small, tmp_path / "published")
    edit_config(**change)(tmp_path / "published")
    with pytest.raises(SystemExit) as end:
        train.main([*SMALL, "--init_from", str(tmp_path / "published"), "--out_dir", str(tmp_path / "r")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("kind", ["gpt", "mamba"])
def test_fine_tuning_starts_from_the_published_weights_and_learns(tmp_path, kind):
    small = random_model(kind)
    save(kind, small, tmp_path / "published")
    flags = [
        "--init_from",
        str(tmp_path / "published"),
        "--reverse",
        "--lr",
        "3e-3",
        "--out_dir",
        str(tmp_path / "run"),
    ]
    train.main([*SMALL, *flags, "--steps", "100", "--eval_every", "100"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    sizes = dict(model=kind, n_layer=3, n_embd=24, optimizer="adamw", lr=3e-3)
    sizes |= dict(d_state=8) if kind == "mamba" else dict(n_head=4)
    assert {name: config[name] for name in sizes} == sizes
    first, last = lines(tmp_path / "run")
    assert first["loss"] is None and last["loss"] < math.log(12) - 0.3  # better than knowing only what is a label
    train.main(["--resume", str(tmp_path / "run"), "--eval_only"])
    shutil.rmtree(tmp_path / "published")  # it is not needed any more
    train.main(["--resume", str(tmp_path / "run"), "--steps", "101"])
    assert lines(tmp_path / "run")[-1]["loss"] < math.log(12) - 0.3  # and what was learned is not lost


def test_fine_tuning_is_gentler_unless_the_flags_say_otherwise(tmp_path):
    save_gpt2(random_model("gpt"), tmp_path)
    given = dict(init_from=str(tmp_path), num_nodes=12, path_len=3, device="cpu")
    for more, expected in ({}, ("adamw", 1e-4)), (dict(lr=1e-3, optimizer="muon"), ("muon", 1e-3)):
        s, _, _ = flags.settle(given | more)
        assert (s.optimizer, s.lr) == expected


def test_the_tasks_tokens_are_the_first_rows_and_positions_are_cropped(tmp_path):
    published = random_model("gpt")
    save_gpt2(published, tmp_path)
    given = dict(init_from=str(tmp_path), num_nodes=12, path_len=3, multi=True, n_future=2)
    s, _, _ = flags.settle(given | {"device": "cpu"})
    model = train.make_model(s)
    pretrained.start_from(model, s.init_from)
    assert torch.equal(model.wte.weight, published.wte.weight[:16]) and model.lm_head.weight is model.wte.weight
    assert s.causal and model.config.prefix_len == 0  # as the published weights were trained
    assert torch.equal(model.wpe.weight, published.wpe.weight[: data.prefix_length(2, 3) + 2])
    for name, p in published.h.named_parameters():
        assert torch.equal(dict(model.h.named_parameters())[name], p)
    assert len(model.future) == 1


def test_flags_that_do_not_go_with_published_weights_are_refused(tmp_path, capsys):
    save_gpt2(random_model("gpt"), tmp_path / "published")
    for flags, sentence in [
        (["--n_layer", "4"], "--n_layer is 4, but in"),
        (["--model", "mamba"], "--model is mamba, but in"),
        (["--path_len", "12"], "wpe.weight is (70, 24), but the model needs (80, 24); give a smaller --deg or --path_len"),
        (["--num_nodes", "70"], "is (60, 24), but the model needs (74, 24); give a smaller --num_nodes"),
    ]:
        with pytest.raises(SystemExit) as end:
            train.main(
                [
                    *SMALL,
                    "--num_nodes",
                    "40",
                    "--init_from",
                    str(tmp_path / "published"),
                    *flags,
                    "--out_dir",
                    str(tmp_path / "run"),
                ]
            )
        assert end.value.code == 2 and sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["--init_from", "gpt3"])
    assert "train.py: gpt3 is neither a folder nor one of the published models" in capsys.readouterr().err
