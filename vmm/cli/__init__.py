"""The command line: QEMU's options to one frozen VmmConfig.

table.py     every option: its name, its argument, its line in --help, its function
builder.py   what the functions fill in; checks that need several options, defaults
machine.py   -machine -accel -cpu -smp        memory.py   -m -object -numa
chardevs.py  -chardev -serial -mon -qmp       guest.py    -kernel -device …
net.py       -netdev              disk.py     -drive -blockdev
process.py   -name -incoming -global -add-fd … and the options that have no effect here
"""

from vmm.cli.parse import parse_args

__all__ = ["parse_args"]
