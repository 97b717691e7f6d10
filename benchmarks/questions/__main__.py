"""The questions of the 2007 discussion, measured.

    python -m benchmarks.questions                        all of them
    python -m benchmarks.questions octets merging         two of them
    python -m benchmarks.questions --plots docs/plots --doc docs/questions.md

Each prints its tables as they stand in docs/questions.md; `--doc` puts them there, `--plots` writes
the SVGs. The figures go to benchmarks/out/questions.json too.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.questions.answer import Answer, markdown, put
from benchmarks.questions.catalogue import QUESTIONS
from benchmarks.questions.measure import EARNEST, QUICK, progress
from benchmarks.questions.plot import NoMatplotlib, draw
from benchmarks.report import end_tidily, keep, show


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.list:
        width = max(map(len, QUESTIONS))
        for name, question in QUESTIONS.items():
            show(f"{name:<{width}}  {question.asks}")
        return
    unknown = set(args.names) - set(QUESTIONS)
    if unknown:
        parser().error(f"no such question: {', '.join(sorted(unknown))}")
    end_tidily()
    results: dict[str, Any] = {}
    names = args.names or list(QUESTIONS)
    for index, name in enumerate(names, 1):
        show(f"\n## {name}: {QUESTIONS[name].asks} ({index} of {len(names)})\n")
        begun = time.monotonic()
        answer = QUESTIONS[name].measure(QUICK if args.quick else EARNEST)
        progress("")
        show(markdown(answer))
        show(f"\n({time.monotonic() - begun:.0f} s)")
        results[name] = [table._asdict() for table in answer.tables]
        if args.plots is not None:
            write_plots(answer, args.plots)
        if args.doc is not None:
            text = args.doc.read_text(encoding="utf-8")
            args.doc.write_text(put(text, name, answer), encoding="utf-8")
    keep("questions", {"questions": results})


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.questions",
        description="The questions of the 2007 discussion, measured.",
        epilog="example: python -m benchmarks.questions octets --plots docs/plots",
    )
    made.add_argument("names", nargs="*", metavar="NAME", help="of these questions; all")
    made.add_argument("--list", action="store_true", help="name the questions and end")
    made.add_argument("--quick", action="store_true", help="short runs, for a first look")
    made.add_argument("--plots", type=Path, metavar="DIR", help="write the plots there, as SVG")
    made.add_argument("--doc", type=Path, metavar="FILE", help="put the tables into this document")
    return made


def write_plots(answer: Answer, folder: Path) -> None:
    for plot in answer.plots:
        try:
            show(f"wrote {draw(plot, folder)}")
        except NoMatplotlib as error:
            show(str(error))


if __name__ == "__main__":
    main()
