"""virtio-net: one receive, one transmit and one control queue (virtio 1.2, 5.1).

No frame is lost between tap and guest, and none is sent twice:

* Receive. A frame is taken from the back-end only when the guest has offered a buffer, and is in
  guest RAM, published, before the lock is dropped. With MRG_RXBUF one buffer may not be enough;
  then the frame is held, as part of the saved state, and no other is taken.
* Transmit. A chain is published after the back-end took the frame. While the back-end is full the
  chain stays in the ring, and is found there again: on `writable`, or by the successor.

Transmit runs on the vCPU thread that notified, receive on the loop's.
"""

from __future__ import annotations

from cpr.vmstate import VmState
from vmm.devices.irq import SetLevel
from vmm.devices.virtio import net_control, net_features
from vmm.devices.virtio.chain import Chain
from vmm.devices.virtio.device import BATCH, Defer, VirtioDevice
from vmm.devices.virtio.errors import VirtqueueError
from vmm.devices.virtio.memory import GuestMemory
from vmm.devices.virtio.net_backend import NO_OFFLOADS, VNET_HDR_SIZE_BYTES, NetBackend
from vmm.devices.virtio.net_state import (
    FRAME_SIZE_MAX_BYTES,
    MAC_SIZE_BYTES,
    NetState,
    RxFilter,
)
from vmm.devices.virtio.ring import Virtqueue
from vmm.errors import DeviceError

NET_DEVICE_ID = 1
RX_QUEUE, TX_QUEUE, CONTROL_QUEUE = 0, 1, 2
QUEUE_SIZES = (256, 256, 64)  # QEMU's
STATUS_LINK_UP, STATUS_ANNOUNCE = 1, 2
_NO_HEADER = bytes(VNET_HDR_SIZE_BYTES)
_NUM_BUFFERS_AT = 10  # in the header; the tap leaves it to us


class VirtioNet(VirtioDevice):
    """A network card; a NetFrontend. The back-end belongs to the machine, which closes it."""

    DEVICE_ID = NET_DEVICE_ID

    def __init__(
        self,
        backend: NetBackend,
        mac: bytes,
        memory: GuestMemory,
        set_irq: SetLevel,
        defer: Defer,
        *,
        name: str = "virtio-net0",
    ) -> None:
        if len(mac) != MAC_SIZE_BYTES or mac[0] & 1:
            raise DeviceError(f"{name}: {mac.hex(':')} is not the MAC address of one card")
        if backend.vnet_hdr_size not in (0, VNET_HDR_SIZE_BYTES):
            raise DeviceError(
                f"{name}: netdev '{backend.id}' has headers of {backend.vnet_hdr_size} bytes, "
                f"expected {VNET_HDR_SIZE_BYTES} or none"
            )
        features = net_features.offered(backend)
        super().__init__(name, memory, set_irq, defer, features=features, queue_sizes=QUEUE_SIZES)
        self._backend = backend
        self._permanent_mac = mac
        self._has_header = backend.vnet_hdr_size > 0
        self._link_up = True
        self.oversize_frames = 0  # longer than all buffers of the guest: dropped, as any card does
        self._forget()
        backend.attach(self)

    def _forget(self) -> None:
        self._settings = net_control.Settings(self._permanent_mac, RxFilter(), False)
        self._held = b""
        self._rx_stalled = True  # the back-end waits for receive_more
        self._tx_blocked = False  # the back-end will call writable

    @property
    def state_type(self) -> type[VmState]:
        """NetState."""
        return NetState

    def config_bytes(self) -> bytes:
        """Return the address and the link's status."""
        status = STATUS_LINK_UP if self._link_up else 0
        if self._settings.announce_pending:
            status |= STATUS_ANNOUNCE
        return self._settings.mac + status.to_bytes(2, "little")

    def features_fit(self, features: int) -> bool:
        """Offloads and control commands need what they build on."""
        return super().features_fit(features) and net_features.consistent(features)

    def driver_ready(self) -> None:
        """Tell the tap what the driver does itself."""
        self._backend.set_offloads(net_features.guest_offloads(self.driver_features))

    def function_reset(self) -> None:
        """Address, filter and offloads as at power-on; a held frame is lost as a ring's are."""
        self._forget()
        self._backend.set_offloads(NO_OFFLOADS)

    # ---- queues -------------------------------------------------------------------------

    def process(self, index: int, queue: Virtqueue) -> bool:
        """Serve one queue."""
        if index == TX_QUEUE:
            return self._transmit(queue)
        if index == RX_QUEUE:
            return self._refilled(queue)
        return self._control(queue)

    def _transmit(self, queue: Virtqueue) -> bool:
        if self._tx_blocked:
            return False
        for _ in range(BATCH):
            chain = queue.peek_or_listen()
            if chain is None:
                return False
            if not self._send(chain):
                self._tx_blocked = True
                queue.ignore()
                return False
            queue.publish((chain, 0))
        return True

    def _send(self, chain: Chain) -> bool:
        """Return False if the back-end has no room."""
        size = chain.readable_size
        if not VNET_HDR_SIZE_BYTES <= size <= FRAME_SIZE_MAX_BYTES:
            raise VirtqueueError(
                f"{self.name}: frame of {size} bytes with its header, expected "
                f"{VNET_HDR_SIZE_BYTES}..{FRAME_SIZE_MAX_BYTES}"
            )
        views = chain.readable
        frame = views[0] if len(views) == 1 else memoryview(chain.read(size))
        return self._backend.send(frame if self._has_header else frame[VNET_HDR_SIZE_BYTES:])

    def _refilled(self, queue: Virtqueue) -> bool:
        """Resume reading the back-end if it waits for buffers. `readable` does the work."""
        if self._rx_stalled and queue.pending():
            self._rx_stalled = False
            queue.ignore()
            self._backend.receive_more()
        elif self._rx_stalled and queue.listen():
            return True  # they came between the two looks
        return False

    def _receive(self, queue: Virtqueue) -> bool:
        """One batch; False when the guest has no buffers."""
        for _ in range(BATCH):
            seen = queue.pending()  # before the look at them: those that come later count as new
            if not seen and self._stall(queue, 0):
                return False
            frame = self._held or self._backend.receive()
            if frame is None:
                return True
            self._held = b""
            if not self._wanted(frame) or self._deliver(queue, frame):
                continue
            self._held = frame
            if self._stall(queue, seen):
                return False
        return True

    def _stall(self, queue: Virtqueue, seen: int) -> bool:
        """Wait for more buffers than `seen`, unless they are there meanwhile."""
        if queue.listen(seen):
            queue.ignore()
            return False
        self._rx_stalled = True
        return True

    def _wanted(self, frame: bytes) -> bool:
        start = VNET_HDR_SIZE_BYTES if self._has_header else 0
        destination = frame[start : start + MAC_SIZE_BYTES]
        settings = self._settings
        return settings.rx_filter.accepts(destination, settings.mac)

    def _deliver(self, queue: Virtqueue, frame: bytes) -> bool:
        """Put a frame into guest RAM and publish it; False if the buffers are too few."""
        header, payload = _NO_HEADER, memoryview(frame)
        if self._has_header:
            header, payload = frame[:VNET_HDR_SIZE_BYTES], payload[VNET_HDR_SIZE_BYTES:]
        size = VNET_HDR_SIZE_BYTES + len(payload)
        chains = self._buffers(queue, size)
        if chains is None:
            return False
        if not chains:
            self.oversize_frames += 1
            return True
        header = header[:_NUM_BUFFERS_AT] + len(chains).to_bytes(2, "little")
        first = chains[0]
        first.write(header)
        done = first.write(payload, VNET_HDR_SIZE_BYTES)
        used = [(first, VNET_HDR_SIZE_BYTES + done)]
        for chain in chains[1:]:
            size = chain.write(payload[done:])
            done += size
            used.append((chain, size))
        queue.publish(*used)
        return True

    def _buffers(self, queue: Virtqueue, size: int) -> list[Chain] | None:
        """Chains for `size` bytes: [] if the guest can never have enough, None if not now."""
        mergeable = self.negotiated(net_features.MRG_RXBUF)
        chains: list[Chain] = []
        room = 0
        while room < size:
            chain = queue.peek(len(chains))
            if chain is None:
                return [] if len(chains) == queue.size else None
            if chain.writable_size < VNET_HDR_SIZE_BYTES:
                raise VirtqueueError(
                    f"{self.name}: receive buffer of {chain.writable_size} bytes, expected at "
                    f"least the header's {VNET_HDR_SIZE_BYTES}"
                )
            chains.append(chain)
            room += chain.writable_size
            if not mergeable and room < size:
                return []
        return chains

    def _control(self, queue: Virtqueue) -> bool:
        for _ in range(BATCH):
            chain = queue.peek_or_listen()
            if chain is None:
                return False
            if not chain.writable_size:
                raise VirtqueueError(f"{self.name}: a command without room for its reply")
            command = chain.read(net_control.COMMAND_SIZE_MAX_BYTES)
            settings = net_control.apply(self._settings, command)
            if settings is not None:
                self._settings = settings
            reply = net_control.REPLY_ERROR if settings is None else net_control.REPLY_OK
            queue.publish((chain, chain.write(reply)))
        return True

    # ---- NetFrontend, on the loop's thread ----------------------------------------------

    def readable(self) -> bool:
        """Bring waiting frames to the guest; see NetFrontend."""
        with self._lock:
            queue = self.queues[RX_QUEUE]
            if self._rx_stalled or not (self.is_live and queue.ready):
                self._rx_stalled = True
                return False
            try:
                wants_more = self._receive(queue)
                self.signal(queue)
            except VirtqueueError as error:
                self._break(error)
                return False
            return wants_more

    def writable(self) -> None:
        """Send what the back-end refused before."""
        with self._lock:
            self._tx_blocked = False
            self._serve(TX_QUEUE)

    def set_link(self, *, up: bool) -> None:
        """Plug the cable in or out, for the guest to see."""
        with self._lock:
            if up != self._link_up:
                self._link_up = up
                self.config_changed()

    def announce(self) -> bool:
        """Ask the driver to announce itself on the network; False if it cannot."""
        with self._lock:
            if not (self.is_live and self.negotiated(net_features.GUEST_ANNOUNCE)):
                return False
            self._settings = net_control.Settings(
                self._settings.mac, self._settings.rx_filter, announce_pending=True
            )
            self.config_changed()
            return True

    # ---- Device, on the loop's thread ---------------------------------------------------

    def start(self) -> None:
        """Poll the back-end; send what the ring holds."""
        with self._lock:
            self._rx_stalled = True
            self._tx_blocked = False
            self._backend.set_offloads(net_features.guest_offloads(self._effective_features()))
        self._backend.start()
        super().start()

    def stop(self) -> None:
        """Take no frame from the back-end any more; what waits there stays there."""
        self._backend.stop()
        super().stop()

    def save(self) -> NetState:
        """See NetState."""
        with self._lock:
            return NetState(
                transport=self._save_transport(),
                mac=self._settings.mac,
                link_up=self._link_up,
                announce_pending=self._settings.announce_pending,
                rx_filter=self._settings.rx_filter,
                held_frame=self._held,
            )

    def load(self, state: VmState) -> None:
        """Replace everything; the back-end hears of it at `start`."""
        assert isinstance(state, NetState)
        with self._lock:
            self._load_transport(state.transport)
            self._forget()
            self._settings = net_control.Settings(
                state.mac, state.rx_filter, state.announce_pending
            )
            self._link_up = state.link_up
            self._held = state.held_frame

    def _effective_features(self) -> int:
        return self.driver_features if self.is_driver_ready else 0
