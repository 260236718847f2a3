"""Checkpoints in a format of our own: written in the background, read at any number of processes.

    checkpoints/step-00000012/
        rank-00000.safetensors   what process 0 owned: ranges of weights and of AdamW's two moments
        rank-00000.json          size and hash of it; written when the file is safe on the volume
        manifest.json            all sizes and hashes, what was learned, how far, and the losses
        COMMITTED                hash of the manifest; written last: without it nothing counts

A key of a safetensors file is `KIND:START:PARAMETER`: the numbers from START on of the flattened
parameter, always in 32 bit. No file says anything of processes or ZeRO stages, so any gang reads
the ranges that it owns, see `fragments`.

Whoever can write the work volume can write these files, so nothing that could run code is ever
read: only safetensors (through the library, which knows numbers and names) and JSON (through the
models of `manifest`, which refuse unknown fields and names that are paths). There is no call of
`torch.load`, `pickle`, nor of DeepSpeed's own `load_checkpoint`; a test reads all sources for it.
"""
