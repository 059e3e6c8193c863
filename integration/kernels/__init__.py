"""The package on kernels of distributions, in virtual machines: `python -m integration.kernels`.

`distributions` fetches kernels, `emulator` boots one with QEMU, and `guest` is what runs in it:
`checks`, of which `differences` says what a kernel cannot do. docs/kernels.md has what was seen.
"""
