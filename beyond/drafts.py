"""Self-speculative decoding: output heads 2 … n draft tokens, head 1 accepts them (Gloeckle et al.
2024, section 3.2; Stern et al. 2018).

    python beyond/drafts.py runs/NAME        how many passes a run of train.py --multi saves

One pass over the path's tokens a b c … writes at least one token and checks the drafts after it:

    pass 1   reads  … s g =          head 1 says s,   heads 2, 3 draft  a b
    pass 2   reads  s a b            head 1 says a b c: both drafts were right, and c is new

Every token is head 1's choice, so what is written never changes; drafts can only save passes.
"""

import copy
import sys
from pathlib import Path

import torch

# Run as a script, Python looks for modules in this file's folder; ours are one above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@torch.no_grad()
def decode_by_drafts(model, prefix, length):
    """Greedy decoding in fewer passes.

    Arguments: prefix (1, P), int64: one graph, since each would accept another number of drafts;
        length, in tokens.
    Returns: the path (1, length), int64, and the number of passes, the prefix's among them.
    """
    cache = model.new_cache(1, prefix.shape[1] + length - 1)
    unread, drafts, tokens, passes = prefix, prefix[:, :0], prefix[:, :0], 0
    while True:
        saved = copy.deepcopy(cache) if drafts.shape[1] > 0 else None
        trunk = model.trunk(torch.cat([unread, drafts], dim=1), cache)
        says = model.head(trunk, 0, drafts.shape[1] + 1, cache).argmax(dim=2)
        passes += 1
        agree = (says[:, :-1] == drafts).int().cumprod(dim=1)  # 1 up to the first wrong draft
        kept = int(agree.sum())
        new = says[:, : kept + 1]  # the accepted drafts, and head 1's own next token
        tokens = torch.cat([tokens, new], dim=1)
        if tokens.shape[1] == length:
            return tokens, passes
        heads = range(1, model.config.n_future)
        ahead = [model.head(trunk, k, drafts.shape[1] + 1, cache).argmax(dim=2) for k in heads]
        if kept == drafts.shape[1]:
            unread = new[:, -1:]
        else:  # the cache has read wrong drafts: go back, and read the right ones next time
            cache, unread = saved, torch.cat([unread, new], dim=1)
        drafts = torch.cat([said[:, kept : kept + 1] for said in ahead] + [prefix[:, :0]], dim=1)
        drafts = drafts[:, : length - tokens.shape[1] - 1]  # a pass writes one more than it accepts


def main(argv=None):
    """Decode 200 test graphs of a run with its drafts, and say how many passes they saved."""
    from ask import load
    from plumbing import flags, graph_files

    folders = sys.argv[1:] if argv is None else argv
    with flags.one_sentence_for_faults(program="drafts.py"):
        if {"-h", "--help"} & set(folders):
            sys.exit(print(__doc__))
        if len(folders) != 1:
            raise ValueError("give the folder of one run of train.py --multi")
        model, s, files = load(folders[0])
        if s.objective != "multi":
            raise ValueError(f"{folders[0]} has the objective {s.objective}; give a run of --multi")
        prefix, path = (part[:200] for part in graph_files.test_graphs(s, files))
        passes, right = 0, 0
        for one, its_path in zip(prefix, path):
            written, count = decode_by_drafts(model, one[None], s.path_len)
            its_path = its_path.flip(0) if s.reverse else its_path
            passes, right = passes + count, right + int(torch.equal(written[0], its_path))
        print(
            f"{len(path)} paths of {s.path_len} tokens: {passes / len(path):.2f} passes each, where"
            f" one token a pass takes {s.path_len}; {right / len(path):.1%} of the paths are right"
        )


if __name__ == "__main__":
    main()
