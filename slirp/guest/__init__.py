"""Guests that come with the project: a SPARC machine with a program in C, and a driver in Python.

- board.py: a SPARCstation 5 around a CPU emulator; cpu.py, slavio.py and prom.py are its parts;
  firmware/ is its program; runner.py puts it on a network.
- machine.py and driver.py: the same machine without a CPU, driven from Python.
"""
