"""What comes of a sweep: a table of the results of all runs, and one for each table they glued."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Run = tuple[str, Mapping[str, Any], Mapping[str, Any] | None]  # name, parameters, what came of it


def write(folder: Path, runs: Iterable[Run], failed: Mapping[str, str]) -> None:
    """Collect what is finished: ``results`` with a row for each run, and every glued table with the
    run's parameters.

    Each is written as CSV and, where pyarrow is installed, as Parquet; ``index.html`` shows them
    side by side, below why runs have ``failed``.
    """
    shown = [f"<li>{escape(label)}: {escape(why)}</li>" for label, why in failed.items()]
    for name, table in gather(runs).items():
        table.to_csv(folder / f"{name}.csv", index=False)
        with suppress(ImportError):
            table.to_parquet(folder / f"{name}.parquet", index=False)
        shown.append(f"<h2>{escape(name)}</h2>{_html(table)}")
    title = escape(folder.name)
    head = f"<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1>"
    (folder / "index.html").write_text(head + "\n".join(shown), "utf8")


def gather(runs: Iterable[Run]) -> "dict[str, pd.DataFrame]":
    """The tables of the finished ``runs`` by name, with the runs' names and parameters in front. A
    column that is called as one of these has the table's name before it.
    """
    import pandas as pd

    rows = defaultdict(list)
    for run, parameters, record in runs:
        if record is None:
            continue
        about = {"run": run} | {name: text_of(value) for name, value in parameters.items()}
        for table, lines in ({"results": [record["results"]]} | record["tables"]).items():
            for line in lines:
                own = {f"{table} {k}" if k in about else k: value for k, value in line.items()}
                rows[table].append(about | own)
    return {name: pd.DataFrame(lines) for name, lines in rows.items()}


def text_of(value: Any) -> Any:
    """A value as it stands in a table: a list as a text."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _html(table: "pd.DataFrame") -> str:
    numbers = [name for name in table.select_dtypes("number") if table[name].nunique() > 1]
    style = table.style.hide(axis="index").format(precision=3, na_rep="–", escape="html")
    style = style.format(_link, subset="run").background_gradient("Blues", subset=numbers)
    return style.to_html()


def _link(run: str) -> str:
    return f'<a href="{run}/{run.rpartition("-")[0]}.html">{run}</a>'
