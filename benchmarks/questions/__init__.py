"""The questions of the 2007 discussion, each with a measurement: `python -m benchmarks.questions`.

`catalogue` names them; docs/questions.md has a section for each, with the tables that the command
prints. A question is a function of an `Effort` (measure.py) which gives an `Answer` (answer.py):
tables, and plots where a curve says more.

What is measured is the project's own code: IOMMU, LEDMA, ESPDMA, Lance, guest memory, the endpoints
of images and sockets. What it is compared with and what the project does not have (vectors of one
octet, a disk with a buffer of its own, a window of device registers) stands beside the question.

Does not do: judge. No time is asserted anywhere.
"""
