"""Who we are, to a QMP client and to a peer."""

PRODUCT = "cpr-vmm"
VERSION = "0.1.0"
# The QEMU whose QMP dialogue, events and texts we follow (shared facts, 10.0 column).
QEMU_COMPATIBLE = (10, 0, 2)
