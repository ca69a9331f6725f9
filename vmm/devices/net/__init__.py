"""Network back-ends: where the frames of a virtio-net device go to and come from.

netdev.py   from the command line, or from what an update brought, to a back-end
tap.py      the tap back-end
tun.py      the kernel's tun/tap calls (linux/if_tun.h)
"""
