"""The load of a chain: first for a while without updates, then over all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.lab.child import ChildSetup
from tools.lab.errors import CheckFailedError
from tools.lab.load import LoadRun, LoadSpec
from tools.lab.load_ledger import LoadResult
from tools.lab.namespace import NetworkNamespace, TapSpec
from tools.lab.nics import Nic, add_nics
from vmm.boot.guest.net_report import NetReport

# Long enough for some thousand frames; a measurement lasts as long as it lasts, so this is no wait
# for an event.
BASELINE_S = 3.0
BASELINE_RUN, UPDATES_RUN = 1, 2


@dataclass(slots=True)
class Traffic:
    """One namespace with one card, and the load through it."""

    load: LoadSpec
    namespace: NetworkNamespace
    nic: Nic
    baseline: LoadResult | None = None
    ledger: LoadResult | None = None
    _run: LoadRun | None = field(default=None)

    @classmethod
    def prepare(
        cls, load: LoadSpec, stack: contextlib.ExitStack, template: TapSpec | None = None
    ) -> Traffic:
        """Make the namespace and the tap; `stack` ends them. Raises LabError."""
        namespace = stack.enter_context(NetworkNamespace.open())
        (nic,) = add_nics(namespace, 1, template or TapSpec())
        return cls(load, namespace, nic)

    @property
    def child(self) -> ChildSetup:
        """How the process that opens the tap is started; successors need no namespace."""
        return ChildSetup(entrance=self.namespace.entrance())

    @property
    def guest_words(self) -> str:
        """For the guest's command line."""
        return self.load.guest_words(self.nic)

    async def start(self, guest: Callable[[], NetReport]) -> None:
        """Measure the baseline, then start the load that runs over the updates."""
        self._run = await self._begin(BASELINE_RUN, guest)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BASELINE_S):
                await asyncio.get_running_loop().create_future()  # let it run
        self.baseline = await self._run.stop(guest)
        self._run = await self._begin(UPDATES_RUN, guest)

    async def stop(self, guest: Callable[[], NetReport]) -> None:
        """End the load and check the ledger. Raises CheckFailedError when something was lost."""
        if self._run is None:
            raise CheckFailedError("the load was never started")
        self.ledger = await self._run.stop(guest)
        if problems := self.ledger.problems():
            raise CheckFailedError("; ".join(problems))

    async def end(self) -> None:
        """End the load process, if it runs, whatever happened; harmless the second time."""
        if self._run is not None:
            await self._run.kill()

    async def _begin(self, run: int, guest: Callable[[], NetReport]) -> LoadRun:
        return await LoadRun.start(self.load, self.namespace, self.nic, run=run, guest=guest())
