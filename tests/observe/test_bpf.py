"""The assembler of BPF programs, against what the kernel's document says of instructions."""

from __future__ import annotations

from cowfs.observe.bpf import GET_PID_TGID, STACK, Assembler


def hexadecimal(code: Assembler) -> list[str]:
    text = code.assembled()
    return [text[at : at + 8].hex() for at in range(0, len(text), 8)]


def test_instructions_are_as_the_kernel_reads_them() -> None:
    code = Assembler()
    code.do("mov", 6, 1)
    code.load(1, 6, 8, 4)
    code.store(STACK, -16, 1, 4)
    code.store_number(STACK, -12, 0, 4)
    code.map(1, 5)
    code.do_number("add", 2, -24)
    code.call(GET_PID_TGID)
    code.add_to_memory(0, 24, 7)
    code.leave()
    assert hexadecimal(code) == [
        "bf16000000000000",
        "6161080000000000",
        "631af0ff00000000",
        "620af4ff00000000",
        "1811000005000000",
        "0000000000000000",
        "07020000e8ffffff",
        "850000000e000000",
        "db70180000000000",
        "9500000000000000",
    ]


def test_jumps_count_from_the_next_instruction() -> None:
    code = Assembler()
    code.label("again")
    code.jump_if_number(0, "ne", 0, "out")
    code.jump_if(1, "ge", 2, "again")
    code.jump("out")
    code.do_number("mov", 0, 1)
    code.label("out")
    code.leave()
    assert hexadecimal(code) == [
        "5500030000000000",
        "3d21feff00000000",
        "0500010000000000",
        "b700000001000000",
        "9500000000000000",
    ]
