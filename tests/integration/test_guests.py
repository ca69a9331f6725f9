"""Guests in every mode of the CPU, from every kind of image, booted and live-updated.

Real processes, real machine code (tests/guests). A guest that was updated must go on where it was:
it says 'A' only once, and every round that it counted in RAM was said once.
"""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase

import pytest

from tests.framework.assemble import Image
from tests.framework.guest_rig import MIB, RAM_BYTES, Rig, exit_status, memory, next_event
from tests.framework.rounds import check_rounds, goes_on, read_counters
from tests.integration.conftest import MakeGuest
from tools.lab.procfs import find_memfd

pytestmark = pytest.mark.needs_assembler

GIB = 1 << 30
START, PAGES = 4 * MIB, 64
FOUR_GIB = 4 * GIB
# guest, first page, pages
SECTORS = [("real", 0x2_0000, 64), ("protected", 0x10_0000, 768), ("long", 0x10_0000, 768)]


async def live(rig: Rig, life: str, *extra: str) -> None:
    """Boot; update too if `life` says so; the guest counts rounds on."""
    await rig.boot(*extra)
    await goes_on(rig.line)
    if life == "updated":
        await rig.update(*extra)
        await goes_on(rig.line)


@pytest.mark.parametrize(("name", "start", "pages"), SECTORS, ids=[row[0] for row in SECTORS])
async def test_boot_sector_counts_on_in_its_mode(
    accel: str, life: str, guest: MakeGuest, name: str, start: int, pages: int
) -> None:
    async with Rig(accel, "-kernel", str(guest(name))) as rig:
        await live(rig, life)
        await check_rounds(rig, await read_counters(rig, start, pages, RAM_BYTES))


async def test_floppy_image_boots_its_first_sector(
    life: str, guest: MakeGuest, tmp_path: Path
) -> None:
    image = tmp_path / "floppy.img"
    image.write_bytes(guest("protected").read_bytes().ljust(1440 << 10, b"\0"))
    async with Rig("unicorn", "-drive", f"if=floppy,format=raw,file={image}") as rig:
        await live(rig, life)


@pytest.mark.parametrize("image", [Image.FLAT, Image.ELF64, Image.ELF32])
async def test_kernel_image_counts_on(
    accel: str, life: str, guest: MakeGuest, image: Image
) -> None:
    kernel = guest("rounds", image, START=START, PAGES=PAGES)
    async with Rig(accel, "-kernel", str(kernel)) as rig:
        await live(rig, life)
        await check_rounds(rig, await read_counters(rig, START, PAGES, RAM_BYTES))


async def test_pages_above_four_gib_stay_in_place(accel: str, life: str, guest: MakeGuest) -> None:
    kernel = guest("rounds", Image.ELF64, START=FOUR_GIB, PAGES=PAGES)
    async with Rig(accel, "-kernel", str(kernel), ram=memory(5 * GIB)) as rig:
        await live(rig, life)
        await check_rounds(rig, await read_counters(rig, FOUR_GIB, PAGES, 5 * GIB))
        sparse = find_memfd(rig.vmm.pid, 5 * GIB).stat()
        assert sparse.st_blocks * 512 < 64 * MIB


async def test_ram_of_two_back_ends_is_one_range_for_the_guest(
    accel: str, life: str, guest: MakeGuest
) -> None:
    first, second = 8 * MIB, 16 * MIB
    ram = (
        *("-m", f"{(first + second) // MIB}M"),
        *("-object", f"memory-backend-memfd,id=low,size={first}"),
        *("-object", f"memory-backend-memfd,id=high,size={second}"),
        *("-numa", "node,memdev=low", "-numa", "node,memdev=high"),
    )
    border = guest("rounds", Image.ELF64, START=first - 4096 * PAGES // 2, PAGES=PAGES)
    async with Rig(accel, "-kernel", str(border), ram=ram) as rig:
        await live(rig, life)
        await rig.vmm.execute("stop")
        low = find_memfd(rig.vmm.pid, first).read_bytes()[-4096 * PAGES // 2 :: 4096]
        high = find_memfd(rig.vmm.pid, second).read_bytes()[: 4096 * PAGES // 2 : 4096]
        await check_rounds(rig, [*low, *high])


async def test_loader_puts_code_and_data_into_ram_and_starts_a_cpu(
    accel: str, life: str, guest: MakeGuest
) -> None:
    code = guest("loaded", at=0x8000)
    data = int.from_bytes(b"data", "little")
    loaders = (
        *("-device", f"loader,file={code},addr=0x8000,cpu-num=0,force-raw=on"),
        *("-device", f"loader,addr=0x500,data={data},data-len=4"),
    )
    async with Rig(accel, *loaders) as rig:
        await rig.boot()
        await rig.line.until_count(b"A", 1)
        if life == "updated":
            await rig.update()
        rig.line.send(b"!")
        await rig.line.until("the loaded data", lambda received: received == b"Adata")


async def test_debug_console_carries_every_byte(accel: str, life: str, guest: MakeGuest) -> None:
    console = ("-device", "isa-debugcon,iobase=0xe9,chardev=line")
    async with Rig(accel, "-kernel", str(guest("console")), ports=console) as rig:
        await rig.boot()
        await rig.line.until_count(b"z", 1)
        if life == "updated":
            await rig.update()
            await rig.line.more(b"z", 2)
        said = rig.line.received.decode()
        assert said == ("A" + ascii_lowercase * len(said))[: len(said)]


async def test_debug_exit_ends_the_process_with_the_guests_status(
    accel: str, life: str, guest: MakeGuest
) -> None:
    device = ("-device", "isa-debug-exit,iobase=0x501,iosize=2")
    async with Rig(accel, "-kernel", str(guest("exit")), *device) as rig:
        await rig.boot()
        await rig.line.until_count(b"A", 1)
        if life == "updated":
            await rig.update()
        rig.line.send(bytes([21]))
        event = await next_event(rig.vmm, "SHUTDOWN")
        assert event["data"] == {"guest": True, "reason": "guest-shutdown"}
        assert await exit_status(rig.vmm) == 21 << 1 | 1
