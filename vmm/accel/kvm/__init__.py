"""The KVM accelerator: Linux's /dev/kvm through ioctls, with no helper library.

`system` opens /dev/kvm, `vm` makes a VM over mapped RAM, `vcpu` runs and moves one CPU, `exits`
serves what the guest asks of the VMM, `state` converts kernel structs to architecture terms, `abi`
has the numbers and layouts, `ioctl` the two ways to call the kernel. Source of every rule that is
called "KVM API": Documentation/virt/kvm/api.rst of Linux.
"""
