"""``proactor review``: a page on which people look windows over."""

from __future__ import annotations

import getpass
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from proactor.commands.common import UsageError, console


def review(
    windows: Annotated[
        list[Path],
        typer.Argument(
            metavar="WINDOWS...",
            help="the folder that `proactor annotate` wrote, or a windows.jsonl; two with --agreement",
            show_default=False,
        ),
    ],
    reviewer: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="the reviewer's name; default: the user's")
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(help="other windows of the same dialogues, to see and go through by least agreement"),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port on this machine; 0: a free one")] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="open the page in the browser")] = False,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="print how far two files of windows agree, and end")
    ] = False,
) -> None:
    """Look windows over on a local page: move their ends, change values, accept or reject them.

    Every change is saved at once, into WINDOWS, with who made it and when.
    """
    if agreement:
        _print_agreement(windows)
        return
    if len(windows) > 1:
        raise UsageError("WINDOWS: one file or folder; two go with --agreement")
    from proactor.review.desk import Desk
    from proactor.review.serving import serve

    name = reviewer if reviewer is not None else getpass.getuser()
    if not name.strip() or not name.isprintable():
        raise UsageError(f"--as {name!r}: no name")
    desk = Desk(windows[0], name.strip(), beside)

    def tell(address: str) -> None:
        console.print(f"{windows[0]}: {desk.progress()}", markup=False, soft_wrap=True)
        console.print(f"{address}  (Ctrl-C ends it)", markup=False, soft_wrap=True)
        if open_browser:
            webbrowser.open(address)

    serve(desk, port, tell)
    console.print(f"{windows[0]}: {desk.progress()}", markup=False, soft_wrap=True)


def _print_agreement(files: list[Path]) -> None:
    if len(files) != 2:
        raise UsageError("--agreement: two files of windows are compared")
    from proactor.review.agreement import agreement_notes, agreement_table, compare_files

    found = compare_files(files[0], files[1])
    console.print(agreement_table(found))
    for line in agreement_notes(found):
        console.print(line, markup=False, soft_wrap=True)
