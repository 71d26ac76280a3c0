"""Ask a trained model for a path, and see what it writes and how sure it is of each token.

    python ask.py runs/NAME                                     ten graphs that it has not seen
    python ask.py runs/NAME "3,5|7,9|5,2|3,7/3,9="              one of your own: edges/start,goal=

A model that only cheats is sure of every token but the difficult one, the first after the start.
"""

import sys

import torch

import data
import train
from evaluate import decode
from plumbing import command_line, flags, graph_files, run_folder


def load(folder, reads=graph_files.FILES):
    """Load a run's last checkpoint. Arguments: reads, as flags.settle's.

    Returns: the model; s, the run's settings; files, as from graph_files.read_files.
    Raises: ValueError, OSError.
    """
    given = {"resume": folder, "eval_only": True, "device": "cpu", "scan": "auto"}
    s, files, checkpoint = flags.settle(given, reads=reads)
    model = train.make_model(s)
    run_folder.restore(checkpoint, model)
    return model, s, files


@torch.no_grad()
def ask(model, prefix, s):
    """Let the model write the paths of some graphs.

    Arguments: prefix (B, P), int64. Returns: tokens (B, l), int64, in the order in which they are
    written, and the model's probability of each, (B, l), float: given those before it, but for a
    teacherless model, which sees none of them.
    """
    written = decode(model, prefix, s.path_len, s.objective, s.num_nodes)
    path = written.flip(1) if s.reverse else written
    inputs, _ = data.layout(s.objective, prefix, path, s.num_nodes, s.reverse, s.n_future)
    probabilities = model(inputs, num_outputs=s.path_len).softmax(dim=2)  # (B, l, V)
    return written, probabilities.gather(2, written[:, :, None]).squeeze(2)


def verdict(written, path, arms):
    """What was written, in words: written, path and each of the arms are lists from the start."""
    if written == path:
        return "right"
    if written in arms:
        return "a wrong arm"
    if written[-1] == path[-1] and written[:-1] in [arm[:-1] for arm in arms]:
        return "a wrong arm, and the goal at its end"
    return "no arm of the graph"


def show(model, prefix, path, s):
    """Print each graph, what the model writes, how sure it is, and whether it is right."""
    arms = data.trace_arms(prefix, s.deg, s.num_nodes).tolist()
    symbols = [*map(str, range(s.num_nodes)), "|", "=", "/", "$"]  # the vocabulary, in its order
    for i, (tokens, sure) in enumerate(zip(*(part.tolist() for part in ask(model, prefix, s)))):
        words = verdict(tokens[::-1] if s.reverse else tokens, path[i].tolist(), arms[i])
        graph_files.write_graphs(sys.stdout, prefix[i : i + 1], path[i : i + 1])
        print("  writes", *(f"{symbols[token]:>5}" for token in tokens))
        print("  sure  ", *(f"{p:>5.0%}" for p in sure), "  ", words, end="\n\n")


def main(argv=None):
    """The command line. Bad input: one sentence and exit status 2."""
    command_line.make_output_safe()
    words = sys.argv[1:] if argv is None else argv
    with flags.one_sentence_for_faults(program="ask.py"):
        if {"-h", "--help"} & set(words):
            sys.exit(print(__doc__))
        if len(words) not in (1, 2):
            raise ValueError("give the folder of a run, and a graph if you like; see --help")
        model, s, files = load(words[0], () if len(words) == 2 else graph_files.FILES)
        if len(words) == 2:
            prefix, path = graph_files.read_question(words[1], s)
        else:
            prefix, path = (part[:10] for part in graph_files.test_graphs(s, files))
        show(model, prefix, path, s)


if __name__ == "__main__":
    main()
