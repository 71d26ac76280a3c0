"""Every setting of a run, and its default: name=(default, what --help says).

Each is a flag of the same name. A default that differs between the models is a dict. What the
defaults reach, and in how many minutes, stands in results/README.md, and how they were found in
results/LOG.md. This file imports nothing, so that --help need not wait for PyTorch.
"""

SETTINGS = {
    "the task": dict(
        deg=(2, "arms that leave the start node"),
        path_len=(5, "nodes of an arm, counting the start"),
        num_nodes=(20, "node labels to draw from; the paper has 50"),
        n_train=(0, "graphs in a fixed training set (the paper: 200000); 0: fresh ones each step"),
        n_test=(0, "unseen graphs to evaluate on; 0: 2000, or all that --test_file has"),
        train_file=("", "train on the graphs in this file, lines like 3,5|7,9|5,2|3,7/3,9=3,7,9"),
        test_file=("", "evaluate on this file's graphs"),
    ),
    "the objective": dict(
        objective=("next", "what is predicted from what; data.py draws all four"),
        reverse=(False, "write the path from goal to start; alone it is --objective reverse"),
        teacherless=(False, "short for --objective teacherless"),
        multi=(False, "short for --objective multi"),
        n_future=(0, "output heads of --multi: head k predicts the token k ahead; 0: 4 for the GPT,"
                     " 3 for Mamba, at most path_len"),
        only_difficult=(False, "train on the loss of the difficult token alone; not with --multi"),
    ),
    "the model": dict(
        model=("gpt", "a Transformer or a Mamba"),
        n_layer=({"gpt": 8, "mamba": 6}, "blocks"),
        n_head=(2, "attention heads of the GPT"),
        n_embd=({"gpt": 64, "mamba": 128}, "channels"),
        d_state=(32, "numbers of state in each of Mamba's channels; upstream has 16"),
        causal=(False, "a causal prefix, as upstream: an edge sees only those before it; else the"
                       " GPT's mask is open there, and Mamba reads the prefix twice"),
        no_canon=(False, "the GPT without its Canon layers, as in GPT-2; its embeddings and last"
                         " norm start at other sizes"),
        no_mimetic=(False, "independent initial weights (Mamba's as upstream); the GPT's queries"
                           " and keys start twice as large, and Mamba's convolution is 4 wide"),
        init_from=("", "start from published weights: gpt2, gpt2-large, mamba-130m and others, or a"
                       " folder that has them; sets the sizes and --causal, takes out Canon, and"
                       " unless they are given sets --optimizer adamw --lr 1e-4"),
        scan=("auto", "how Mamba computes its scan; auto: triton on a GPU, fast elsewhere"),
    ),
    "the optimiser": dict(
        optimizer=("muon", "muon: Muon for the blocks' matrices, AdamW for the rest; adamw: AdamW"),
        lr=(2e-3, "AdamW's learning rate; Muon's is ten times that"),
        weight_decay=(0.1, "each step multiplies the blocks' matrices by 1 - this * their learning"
                           " rate"),
        batch_size=(128, "graphs a step"),
        steps=(400, "steps"),
        warmup=(10, "steps over which the learning rate rises"),
        decay=(0.75, "share of the steps, the last ones, over which the learning rate falls to 0;"
                     " 0: it stays"),
    ),
    "the run": dict(
        seed=(1, "fixes the whole run on a CPU, for a given number of threads"),
        eval_every=({"gpt": 25, "mamba": 50}, "steps between evaluations; each is a line of the"
                                              " log, and a checkpoint"),
        device=("auto", "cpu, cuda, cuda:1, mps; auto: cuda where there is one, else cpu"),
        dtype=("float32", "bfloat16: mixed precision"),
        compile=(False, "torch.compile the blocks, for training: for long runs on a GPU"),
        threads=(0, "CPU threads; 0 leaves the choice to PyTorch"),
        out_dir=("", "the run's folder; if not given, runs/ and a name made of what matters"),
        resume=("", "go on with the run in this folder, to the same numbers as if it had never"
                    " stopped; with other --steps to other numbers, since the learning rate follows"
                    " the steps"),
        eval_only=(False, "with --resume: evaluate the checkpoint, on the run's test graphs or on"
                          " others by --test_file or --n_test, and stop"),
    ),
}

# What a setting may be, where that is a short list
CHOICES = dict(
    objective=("next", "reverse", "teacherless", "multi"),
    model=("gpt", "mamba"),
    scan=("auto", "reference", "fast", "triton"),
    optimizer=("muon", "adamw"),
    dtype=("float32", "bfloat16"),
)
