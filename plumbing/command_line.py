"""Read the command line, and print --help, without PyTorch, which loads for seconds."""

import argparse
import os
import sys

from settings import CHOICES, SETTINGS

METAVAR = {bool: None, int: "N", float: "X", str: "NAME"}


def make_output_safe():
    """Keep printing from failing where the terminal lacks a letter, or there is no output."""
    if sys.stdout is None:  # the shell's >&-
        sys.stdout = open(os.devnull, "w")
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's cannot, and need not
        sys.stdout.reconfigure(errors="backslashreplace")


def started():
    """The name of the script that was started: train.py, or one of beyond/."""
    name = os.path.basename(sys.argv[0])
    beyond = os.path.join(os.path.dirname(os.path.dirname(__file__)), "beyond", name)
    return name if name.endswith(".py") and os.path.exists(beyond) else "train.py"


def refuse(message, program=None, only_here=False):
    """Say in one sentence what cannot be done, and end with exit status 2.

    Of torchrun's processes only the first one speaks, since the others find the same; unless
    only_here, for a fault that one of them may meet alone.
    """
    program, process = program or started(), os.environ.get("LOCAL_RANK", "0")
    if only_here and process != "0":
        program = f"{program}, process {process}"
    if only_here or process == "0":
        print(f"{program}: {message}", file=sys.stderr)
    sys.exit(2)


def defaults_for(model):
    """Every setting's default for one of the models: a dict."""
    defaults = {name: d for group in SETTINGS.values() for name, (d, _) in group.items()}
    return {name: d[model] if isinstance(d, dict) else d for name, d in defaults.items()}


def help_and_stop(doc):
    """Print --help and end the program, if --help is what the command line asks for."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        make_output_safe()
        parse(["--help"], doc)


def parse(argv, doc):
    """Read the flags; for --help, print them and end the program.

    Arguments: doc, train.py's docstring, whose first two paragraphs stand above the flags.
    Returns: a dict of the flags that were given.
    """
    summary, examples = doc.split("\n\n")[:2]
    parser = argparse.ArgumentParser(
        prog=started(),
        description=f"{summary}\n\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    for title, group in SETTINGS.items():
        flags = parser.add_argument_group(title)
        for name, (default, explanation) in group.items():
            shown = f" (default: {default})" if default else ""
            if isinstance(default, dict):
                shown = f" (default: {default['gpt']} for the GPT, {default['mamba']} for Mamba)"
                default = default["gpt"]
            kind = {"type": type(default), "metavar": METAVAR[type(default)]}
            if isinstance(default, bool):
                kind = {"action": "store_true"}
            elif name in CHOICES:
                kind = {"choices": CHOICES[name]}
            flags.add_argument(f"--{name}", help=explanation + shown, **kind)
    parser.error = refuse  # one sentence, without the list of flags
    return vars(parser.parse_args(argv))
