"""The reference of the library, as a page: what its docstrings say, in Markdown."""

import inspect
import re
from collections.abc import Callable, Iterator
from pkgutil import resolve_name
from typing import Any

GROUPS: dict[str, tuple[str, ...]] = {
    "Entropies": (
        "entropy", "entropies", "Entropy", "ClosedForm", "Stochastic", "Aligned", "Converged",
        "embedded", "capture", "lipschitz", "Lipschitz",
    ),
    "Units and regions": (
        "ImageGrid", "Points", "Tokens", "Regions", "units:Units", "covered_units", "read_masks",
        "foreground_units",
    ),
    "Knowledge points and the six metrics": (
        "knowledge_points", "KnowledgePoints", "summarise", "points:Summary", "six_metrics",
        "Metrics", "Choices", "weight_distance", "learning_distance", "d_mean_var",
        "detour_ratio", "points:background_level",
    ),
    "Over a training": (
        "trajectory", "Trajectory", "Recorder", "load_weights", "checkpoint_files:in_order",
    ),
    "Comparisons": (
        "compare", "compare_seeds", "stats:Difference", "stats:holm", "stats:verdict",
        "metrics:agreement",
    ),
    "Training and distilling": (
        "distill:student", "distill:baseline", "distill:train", "distill:TensorData",
        "distill:Data", "schedule:Schedule", "losses:TrainingObjective", "losses:labels_only",
        "losses:Loss", "checkpoints:Checkpoints",
    ),
}  # fmt: skip
"""What is shown, in order; names of a module's own as "module:name"."""
WIDTH = 62  # characters of a call that a page shows in one line
ENTRY = re.compile(r"(\S+(?:, \S+)*) {2,}(\S.*)")
"""The first line of a list of arguments or fields: a name, and behind a gap what it is."""


def reference() -> str:
    """All groups, as Markdown."""
    return "\n\n".join(f"## {title}\n\n{_group(names)}" for title, names in GROUPS.items())


def _group(names: tuple[str, ...]) -> str:
    return "\n\n".join(section(name) for name in names)


def section(name: str) -> str:
    """What there is to say of one name: how it is called, its docstring, and its own functions."""
    module, _, short = name.rpartition(":")
    path = f"kpnb.{module}".rstrip(".")
    thing = resolve_name(f"{path}:{short}")
    parts = [f"### {short}", f"```python\n{path}.{called(short, thing)}\n```", markdown(thing)]
    if inspect.isclass(thing):
        parts.append(members(thing))
    return "\n\n".join(filter(None, parts))


def called(name: str, thing: Callable[..., Any]) -> str:
    """A function or class as it is called: names of arguments and what they are by default."""
    if getattr(thing, "_is_protocol", False):
        return name
    every = inspect.signature(thing).parameters.values()
    parameters = [each for each in every if each.name not in ("self", "cls")]
    shown = [_argument(each) for each in parameters]
    named = [i for i, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY]
    if named and not any(each.kind is each.VAR_POSITIONAL for each in parameters):
        shown.insert(named[0], "*")
    line = f"{name}({', '.join(shown)})"
    return line if len(line) <= WIDTH else f"{name}(\n    {_wrapped(shown)}\n)"


def _argument(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    if parameter.default is parameter.empty:
        return f"{stars}{parameter.name}"
    default = parameter.default
    shown = default.__name__ if inspect.isroutine(default) else repr(default)
    return f"{parameter.name}={'...' if shown == '<factory>' else shown}"


def _wrapped(arguments: list[str]) -> str:
    """Arguments over several lines."""
    lines = [""]
    for each in arguments:
        if len(lines[-1]) + len(each) > WIDTH:
            lines.append("")
        lines[-1] += f"{each}, "
    return "\n    ".join(line.rstrip() for line in lines)


def members(kind: type) -> str:
    """The public functions and properties of a class that have something to say."""
    found = []
    for name, value in vars(kind).items():
        value = getattr(value, "__func__", value)  # of class methods
        if name.startswith("_") or not inspect.getdoc(value):
            continue
        if isinstance(value, property) or type(value).__name__ == "cached_property":
            found.append((f"`.{name}`", value))
        elif inspect.isfunction(value):
            found.append((f"`.{called(name, value)}`", value))
    return "\n\n".join(_definition(how, markdown(value)) for how, value in found)


def _definition(term: str, text: str) -> str:
    """An entry of a definition list."""
    return f"{term}\n: " + text.replace("\n", "\n  ")


def markdown(thing: Any) -> str:
    """A docstring as Markdown: paragraphs, examples, and lists of arguments or fields."""
    text = inspect.getdoc(thing) or ""
    return "\n\n".join(_block(block.splitlines()) for block in text.split("\n\n"))


def _block(lines: list[str]) -> str:
    if all(line.startswith("    ") for line in lines):
        code = "\n".join(line.removeprefix("    ") for line in lines)
        return f"```python\n{code}\n```"
    if ENTRY.fullmatch(lines[0]):
        return "\n\n".join(_definition(f"`{name}`", inline(text)) for name, text in entries(lines))
    return inline(" ".join(lines))


def entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Names and what they are, of a list whose second column all lines keep to, but for names too
    long for it.
    """
    indents = [len(line) - len(line.lstrip()) for line in lines if line.startswith(" ")]
    column = min(indents) if indents else ENTRY.fullmatch(lines[0]).start(2)
    name, words = "", []
    for line in lines:
        if not line.startswith(" "):
            if name:
                yield name, " ".join(words)
            apart = ENTRY.fullmatch(line)
            cut = max(column, apart.start(2)) if apart else column
            name, words, line = line[:cut].strip(), [], line[cut:]
        words.append(line.strip())
    yield name, " ".join(words)


def inline(text: str) -> str:
    """A paragraph; code stays as it is, and nothing else means anything to Markdown."""
    text = re.sub(r":\w+:`([^`]*)`", r"``\1``", text)  # roles
    parts = re.split(r"(``.+?``)", text)
    return "".join(
        f"`{part[2:-2]}`"
        if part.startswith("``")
        else re.sub(r"([\\*_<>\[\]{}$|#~`])", r"\\\1", part)
        for part in parts
    )
