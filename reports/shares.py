"""Who gets what on unequal accelerators: the block "shares" of a document, in words and as a terminal table."""

from __future__ import annotations

from rich.console import Console

from reports.table import Document, add_row, grid, heading, in_bytes, in_seconds, number, plain

HEAD = ("Accelerators", "Samples", "Micro-batches", "States", "Peak memory", "Free", "Waits")


def parts_of_a_step(document: Document) -> tuple[list[str], str]:
    """(names, what they are) of the rows of `breakdown_by_stage`: pipeline stages, or groups of equal accelerators."""
    groups = (document.get("shares") or {}).get("groups")
    if groups:
        return [f"{row['gpus']} x {plain(row['node'])}" for row in groups], "group of accelerators"
    return [str(stage) for stage in range(len(document.get("breakdown_by_stage") or []))], "pipeline stage"


def rows(document: Document) -> list[tuple[str, ...]]:
    """The cells of every group, under HEAD; empty where accelerators are equal."""
    found: list[tuple[str, ...]] = []
    for row in (document.get("shares") or {}).get("groups") or []:
        free = row["free_bytes"]
        found.append((
            f"{row['gpus']} x {plain(row['accelerator'])}", number(row["samples"]),
            f"{row['micro_batches']} x {row['micro_batch']}", f"{100 * row['state_share']:.2f}%",
            in_bytes(row["peak_memory_bytes"]), in_bytes(free) if free >= 0 else f"{in_bytes(-free)} too much",
            in_seconds(row["waiting_s"]),
        ))
    return found


def show(document: Document, console: Console) -> None:
    """Print what each accelerator of a group gets; nothing where accelerators are equal."""
    if found := rows(document):
        shares = document["shares"]
        heading(console, f"Who gets what: {plain(shares['text'])} (each of the accelerators)")
        table = grid((HEAD[0], "left"), *((name, "right") for name in HEAD[1:]))
        for cells in found:
            add_row(table, cells)
        console.print(table)
