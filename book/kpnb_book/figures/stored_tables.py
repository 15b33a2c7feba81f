"""Which tables of stored evidence there are: how far they are, whether they are stale, and whether
they are of other samples. Markdown for the pages that quote them.
"""

from collections.abc import Iterable, Mapping

from kpnb_book.studies import replication
from kpnb_book.studies.board import Stored
from kpnb_book.studies.catalogue import every
from kpnb_book.studies.evidence import CONSTANT, TEACHER
from kpnb_book.studies.verdicts import QUESTIONS


def which(found: Mapping[str, Stored], missing: Iterable[str]) -> str:
    """The tables that there are, how far they are, whether they are stale, and which are still to
    be computed.
    """
    lines = [f"- **{name}** ({each.kind}): {_state(each)}" for name, each in found.items()]
    absent = ", ".join(f"`{name}`" for name in missing)
    if absent:
        lines += ["", f"Not there yet: {absent}."]
    return "\n".join([*lines, *_warned(found)])


def _state(each: Stored) -> str:
    """How many seeds, samples and layers, and what has no verdict."""
    layers = ", ".join(sorted(each.samples["layer"].unique()))
    size = f"{each.samples['sample'].nunique()} samples, {layers}"
    if lacks := each.lacks():
        return f"{lacks}, {size}; no verdict"
    late = [
        f"*{question.name}* ({lacks})"
        for question in QUESTIONS.values()
        if each.roles.issuperset(question.roles) and (lacks := each.lacks(question))
    ]
    said = f"{len(each.stated)} seeds, {size}"
    return f"{said}; no verdict on {', '.join(late)}" if late else said


def _warned(found: Mapping[str, Stored]) -> list[str]:
    """``remarks`` as a paragraph of its own; nothing when there are none."""
    warning = remarks(found)
    return ["", warning] if warning else []


def remarks(found: Mapping[str, Stored | None]) -> str:
    """What is to be known of tables before they are read; "" when there is nothing."""
    said = (stale, of_other_samples, diverged, untaught, of_other_teachers)
    return "\n\n".join(filter(None, (remark(found) for remark in said)))


def diverged(found: Mapping[str, Stored | None]) -> str:
    """A remark on networks whose training did not stay finite; "" when there are none."""
    lines = [f"`{name}`: {'; '.join(each.diverged)}" for name, each in found.items() if _lost(each)]
    if not lines:
        return ""
    return (
        f"> **Diverged.** The loss or the weights of these did not stay finite: {'. '.join(lines)}."
        " None was trained again. What is asked of such a network's points has no verdict."
    )


def untaught(found: Mapping[str, Stored | None]) -> str:
    """A remark on the teacher's students whose feature is no nearer to its target than the best
    constant; "" when there are none.
    """
    lines = []
    for name, each in found.items():
        if each is None or CONSTANT not in each.networks:
            continue
        students = each.networks[each.networks["network"] == "student"]
        lost = students[students["feature_error"] >= students[CONSTANT]]
        lines += [
            f"`{name}` at {layer}, {number(len(rows), 'seed', 'seeds')} "
            + " and ".join(str(seed) for seed in rows["seed"])
            for layer, rows in lost.groupby("layer")
        ]
    if not lines:
        return ""
    return (
        "> **Nothing learned.** Students of the teacher that imitate it no better than a constant "
        f"would, on held-out samples: {'; '.join(lines)}. They count like all others."
    )


def of_other_teachers(found: Mapping[str, Stored | None]) -> str:
    """A remark on students whose teacher was trained more than once: a store that was lost, and
    another processor, which rounds otherwise, make another network of the same settings.
    """
    lines = []
    for name, each in found.items():
        if each is None or TEACHER not in each.networks:
            continue
        expected = every().get(name)
        of_role = expected.teacher_of if expected else str
        taught = each.networks[each.networks[TEACHER].notna()]
        scores = taught[TEACHER].round(6).groupby(taught["network"].map(of_role)).nunique()
        lines += [f"the {teacher} of `{name}`" for teacher in scores.index[scores > 1]]
    if not lines:
        return ""
    return (
        f"> **Another teacher.** Trained again in between, and so not the same network for all of "
        f"its students: {', '.join(lines)}."
    )


def _lost(each: Stored | None) -> bool:
    return bool(each and each.diverged)


def of_other_samples(found: Mapping[str, Stored | None]) -> str:
    """A remark that tables are of other samples than those that come with the book, as of classes
    of one's own; "" when none is.
    """
    others = [f"`{name}`" for name, each in found.items() if each and each.other_samples]
    if not others:
        return ""
    return (
        f"> **Other samples.** The tables of {' and '.join(others)} are of other samples than "
        "those that come with the book, such as other classes; what the text says of those need "
        "not hold."
    )


def stale(found: Mapping[str, Stored | replication.Beside | None]) -> str:
    """A warning of stale tables, with what has changed since, by study; "" when none is."""
    outdated = {name: each.outdated for name, each in found.items() if each and each.outdated}
    if not outdated:
        return ""
    lines = [f"> - `{name}`: {'; '.join(changes)}" for name, changes in outdated.items()]
    head = (
        "> **Stale.** These tables belong to other settings, or to another version of the method:"
    )
    commands = _commands(outdated)
    anew = " and ".join(f"`{command} --replace`" for command in commands)
    compute = number(len(commands), "computes", "compute")
    tail = f"> What they say is about those. {anew} {compute} them anew."
    return "\n".join([head, ">", *lines, ">", tail])


def _commands(studies: Iterable[str]) -> list[str]:
    """What computes these studies: those on the paper's own data need its folder."""
    known = every()
    official = [name for name in studies if name in known and known[name].official]
    others = [name for name in studies if name not in official]
    found = [f"kpnb evidence {' '.join(others)}"] if others else []
    return found + [f"kpnb evidence {name} -p data_root=FOLDER" for name in official]


def seeds(count: int, stated: int) -> str:
    """ "20 seeds"; "7 of 20 seeds" while some are still to be computed."""
    if count < stated:
        return f"{count} of {stated} seeds"
    return f"{count} {number(count, 'seed', 'seeds')}"


def number(count: int, one: str, more: str) -> str:
    """The form of a word that goes with a number."""
    return one if count == 1 else more
