"""Looking at what passes: captures and header vectors.

`capture` is a port that wraps a port, `pcapng` writes and reads the files, `layout` checks the
vector in a packet's comment against its bytes.

May know: slirp.wire, nic.port, dma. Start reading at `capture.Capture`.
"""
