"""The lab: launch VMM processes, update them live, and measure what the guest felt.

Reading order: `argv` (how a VMM is started), `process` (one VMM, owned), `update` (one live update
over QMP), `chain` (many, with every check), `results` (what comes out), `table` and `report_html`
(how it is shown). Everything waits on events with a named deadline; nothing polls.
"""
