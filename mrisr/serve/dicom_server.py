"""pynetdicom's server with the bounds that it lacks: length of a PDU and of an instance, time, connections."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import EnhancedMRImageStorage, MRImageStorage, Verification
from pynetdicom.transport import ThreadedAssociationServer

from mrisr.errors import InputError

LOG = logging.getLogger("mrisr.serve.dicom")
STORED = (MRImageStorage, EnhancedMRImageStorage)
LONGEST_PDU = 1 << 20
SPARE = 16  # connections beyond the associations, which are told that there are too many


def entity(title: str) -> AE:
    """An application entity that takes C-ECHO, and C-STORE of MR images in every transfer syntax."""
    # What pynetdicom and pydicom log can hold elements of a data set, names included.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    server = AE(ae_title=title)
    server.add_supported_context(Verification)
    for kind in STORED:
        server.add_supported_context(kind, ALL_TRANSFER_SYNTAXES)
    return server


class Server(ThreadedAssociationServer):
    """Serves a `mrisr.serve.dicom.Node`."""

    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, application: AE, address: tuple[str, int], node: Any) -> None:
        self._node = node
        self._associations: dict[Any, int] = {}
        self._associations_lock = threading.Lock()
        handlers = [
            (evt.EVT_C_STORE, node.store),
            (evt.EVT_C_ECHO, lambda event: 0x0000),
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_DIMSE_RECV, lambda event: self._give_back(event.assoc)),
            (evt.EVT_CONN_CLOSE, lambda event: self._closed(event.assoc)),
        ]
        super().__init__(
            application, address, application.ae_title, application.supported_contexts, evt_handlers=handlers
        )
        application._servers.append(self)

    def get_request(self) -> tuple[socket.socket, Any]:
        client, address = super().get_request()
        client.settimeout(self._node.settings.timeout)  # pynetdicom waits for the rest of a PDU without end
        return client, address

    def verify_request(self, request: socket.socket, client_address: Any) -> bool:
        free = len(self.active_associations) < self._node.settings.associations + SPARE
        if not free:
            LOG.warning("turned away: %d connections are open", self._node.settings.associations + SPARE)
        return free

    def _opened(self, event: Any) -> None:
        """Have every read of the connection bounded."""
        association, stream = event.assoc, event.assoc.dul.socket
        plain = stream.recv

        def recv(count: int) -> bytearray:
            if count > LONGEST_PDU:
                LOG.error("a message claims %d bytes; at most %d are taken at once: hung up", count, LONGEST_PDU)
                raise OSError("too long")
            data = plain(count)
            try:
                self._node.budget.take(len(data))
            except InputError as error:
                LOG.error("%s: hung up", error)
                raise OSError("too much") from error
            with self._associations_lock:
                self._associations[association] = self._associations.get(association, 0) + len(data)
            return data

        stream.recv = recv

    def _closed(self, association: Any) -> None:
        """Free its seat: pynetdicom waits for the request of a connection that is gone as if it were there."""
        self._give_back(association)
        if association.requestor.primitive is None:
            association.dul.to_user_queue.put(None)  # what no request in time gives

    def _give_back(self, association: Any) -> None:
        with self._associations_lock:
            count = self._associations.pop(association, 0)
        self._node.budget.give(count)
