"""The software accelerator: the Unicorn engine (QEMU's translator as a library) as a Vcpu.

Read in this order: `library` (the C functions), `engine` (RAM, device accesses, slices), `layout`
(what the C interface does not show, and the proof that we read it right), `vcpu` (run and stop),
`snapshot` (save and load) with its parts `registers`, `state`, `msrs` and `hosttsc`.
"""
